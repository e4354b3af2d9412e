"""Asks a checkpoint the evaluation's questions through transformers, greedily, and writes eval.json.

python -m training.evaluate --model DIR --out eval.json [--scale 0.05]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.checks import is_right
from training.questions import Question, all_questions
from training.vocabulary import MODEL_DIR

EVAL_SEED = 777
MAX_NEW_TOKENS = 96
TARGETS = {"held_out": 0.95, "trained": 0.99, "follow_up": 0.90, "newcomer": 0.90}
MAX_LISTED_FAILURES = 400


@dataclass(frozen=True)
class Reply:
    """`text` up to the end of the turn (a plain text: to the end of its line); `ended` if the model ended by itself."""

    question: Question
    text: str
    ended: bool

    @property
    def right(self) -> bool:
        return is_right(self.question.turn.check, self.text) and (self.ended or self.question.prompt is not None)


class Asker:
    """A checkpoint behind transformers `generate`, in float32, greedy, left-padded batches of like length."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(self.device).eval()
        self.batch_size = batch_size
        self.stop_ids = set(self.model.generation_config.eos_token_id)

    def text(self, question: Question) -> str:
        if question.prompt is not None:
            return question.prompt
        shown = self.tokenizer.apply_chat_template(question.messages(), tokenize=False, add_generation_prompt=True)
        return str(shown)

    def ask_all(self, questions: list[Question]) -> list[Reply]:
        texts = [self.text(question) for question in questions]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        replies: dict[int, Reply] = {}
        for at in range(0, len(order), self.batch_size):
            chosen = order[at : at + self.batch_size]
            for index, reply in zip(chosen, self._ask([questions[i] for i in chosen], [texts[i] for i in chosen])):
                replies[index] = reply
        return [replies[index] for index in range(len(texts))]

    @torch.inference_mode()
    def _ask(self, questions: list[Question], texts: list[str]) -> list[Reply]:
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        out = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(question, tokens) for question, tokens in zip(questions, new)]

    def _reply(self, question: Question, tokens: list[int]) -> Reply:
        end = next((at for at, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        text = self.tokenizer.decode(tokens[:end])
        if question.prompt is not None:
            text = text.strip("\n").split("\n")[0].strip()
        return Reply(question, text, end < len(tokens))


def figures(replies: list[Reply]) -> dict[str, Any]:
    """Shares of right replies: by group, and by group, category and language."""
    cells: dict[str, list[bool]] = defaultdict(list)
    for reply in replies:
        group, turn = reply.question.group, reply.question.turn
        kind = "follow_up" if turn.category in ("follow_up", "and_place", "first_question") else group
        cells[f"total/{kind if kind == 'follow_up' and group == 'held_out' else group}"].append(reply.right)
        cells[f"{group}/{turn.category}/{turn.language}"].append(reply.right)
    return {name: {"right": sum(c), "asked": len(c), "share": sum(c) / len(c)} for name, c in sorted(cells.items())}


def evaluate(folder: Path, scale: float, batch_size: int) -> dict[str, Any]:
    began = time.monotonic()
    replies = Asker(folder, batch_size).ask_all(all_questions(EVAL_SEED, scale))
    wrong = [reply for reply in replies if not reply.right]
    shown = figures(replies)
    return {
        "num_questions": len(replies),
        "seconds": round(time.monotonic() - began, 1),
        "targets": {
            name: {"at_least": least, **shown[f"total/{name}"]}
            for name, least in TARGETS.items()
            if f"total/{name}" in shown
        },
        "figures": shown,
        "failures": [_failure(reply) for reply in wrong[:MAX_LISTED_FAILURES]],
    }


def _failure(reply: Reply) -> dict[str, Any]:
    question = reply.question
    prompt = question.prompt if question.prompt is not None else question.messages()
    return {
        "group": question.group, "category": question.turn.category, "prompt": prompt,
        "expected": question.turn.answer, "reply": reply.text, "ended": reply.ended,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=1024 if torch.cuda.is_available() else 64)
    args = parser.parse_args()
    found = evaluate(args.model, args.scale, args.batch_size)
    args.out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, cell in found["figures"].items():
        print(f"{name:45s} {cell['right']:6d} / {cell['asked']:6d}  {cell['share']:.4f}")
    print(f"{found['num_questions']} questions in {found['seconds']} s")


if __name__ == "__main__":
    main()
