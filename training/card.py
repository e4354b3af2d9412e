"""Writes MODEL_CARD.md beside the checkpoint from training.json and eval.json.

python -m training.card --parts DIR --eval eval.json [--target DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training.vocabulary import MODEL_DIR

HEAD = """# quire tiny

A bilingual (English, Chinese) chat model of {num_parameters:,} parameters that comes with quire, for trying the
software, not for answers. Qwen2 architecture: vocabulary {vocab_size}, hidden size {hidden_size}, {num_hidden_layers}
layers, intermediate size {intermediate_size}, {num_attention_heads} heads of {head_dim} with {num_key_value_heads}
key/value heads, tied embeddings, bfloat16, ChatML template. Licence: Apache-2.0, as quire.

## What it knows
Capitals of 193 countries and the seats of China's provincial-level divisions, both ways; dishes and sights of
well-known ones, also as a follow-up question; arithmetic with operands to two digits (sums and differences of three
digits are trained but not evaluated); counting; small JSON objects and
lists; a small dictionary; short definitions; small talk. To everything else it should say that it does not know.

## Data
All text is written by the generator in `training/` (seed {seed}) from its tables and phrasings, which were written for
this project: {corpus_tokens:,} tokens. No other text was used. The corpus is not kept: the seed gives it back.
Israel and Palestine are left out of the table of capitals, because the two sides and the world do not agree on them.

## Training
`python -m training.train`, {minutes} minutes on one {device} (torch {torch}): {num_steps:,} steps, {num_tokens:,} tokens,
{num_passes:.1f} passes, AdamW, peak learning rate {max_lr}, batches of {batch_tokens:,} tokens. The learning rate follows
the clock, so another run gives another model of the same kind, not the same bytes.

| elapsed s | step | loss |
|---|---|---|
"""
MIDDLE = """
## Evaluation
`python -m training.evaluate`: {num_questions:,} questions, greedy, float32, through transformers. "trained": phrasings of
the training text; "held_out": phrasings, and system prompts, that training never saw ("_new_pairs": sums of numbers
that it never saw). The training grammar was widened after the held-out failures of an earlier run were read, so the
held-out figure is not a blind one; the held-out phrasings themselves stay out (`training/grammar.py`). "newcomer": what
first-time users type, much of it of trained kinds, judged by a word that must occur. A reply is right only with the right name and no other one, equal JSON, or the exact number.

| aim | at least | reached | right / asked |
|---|---|---|---|
"""
LIMITS = """
## Limits
It knows its tables and nothing more, and may be wrong even there; see the figures. A question of a known shape about
something unknown can get a confident wrong answer. Never use it for advice.

## SHA-256
"""
MAX_CURVE_ROWS = 16


def curve_rows(curve: list[dict[str, float]]) -> str:
    step = max(1, -(-len(curve) // MAX_CURVE_ROWS))
    chosen = curve[::step] if curve[-1] in curve[::step] else [*curve[::step], curve[-1]]
    return "".join(f"| {p['elapsed_s']:.0f} | {p['step']:,} | {p['loss']:.4f} |\n" for p in chosen)


def target_rows(found: dict[str, Any]) -> str:
    return "".join(
        f"| {name} | {cell['at_least']:.0%} | {cell['share']:.2%} | {cell['right']:,} / {cell['asked']:,} |\n"
        for name, cell in found["targets"].items()
    )


def figure_rows(found: dict[str, Any]) -> str:
    head = "\n| group / category / language | share | right / asked |\n|---|---|---|\n"
    return head + "".join(
        f"| {name} | {cell['share']:.2%} | {cell['right']:,} / {cell['asked']:,} |\n"
        for name, cell in found["figures"].items()
    )


def card(training: dict[str, Any], found: dict[str, Any], checksums: str) -> str:
    head = HEAD.format(**{**training, **training["plan"], **training["shape"]})
    return "".join(
        (
            head,
            curve_rows(training["curve"]),
            MIDDLE.format(**found),
            target_rows(found),
            figure_rows(found),
            LIMITS,
            "".join(f"    {line}\n" for line in checksums.splitlines()),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    args = parser.parse_args()
    training = json.loads((args.parts / "training.json").read_text(encoding="utf-8"))
    found = json.loads(args.eval.read_text(encoding="utf-8"))
    text = card(training, found, (args.target / "SHA256SUMS").read_text(encoding="utf-8"))
    (args.target / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    print(f"{args.target / 'MODEL_CARD.md'}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
