"""Writes a trained network: as parts for carrying, and as a checkpoint folder that any Qwen2 reader opens."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from training.vocabulary import write_json

if TYPE_CHECKING:
    from training.network import Network

PART_BYTES = 12 << 20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GENERATION = {"bos_token_id": None, "do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}


def write_parts(network: Network, out: Path, tokenizer: Path) -> None:
    """`model.part0`, `model.part1` (a safetensors file cut in pieces) and `parts.json` with its SHA-256 and config.

    `parts.json` also holds the SHA-256 of the tokenizer, so that weights and tokenizer are put together as they belong.
    """
    # The trainer's own libraries; `join_parts` below must run where torch is absent.
    from safetensors.torch import save

    blob = save(network.checkpoint(), metadata={"format": "pt"})
    pieces = [blob[at : at + PART_BYTES] for at in range(0, len(blob), PART_BYTES)]
    for index, piece in enumerate(pieces):
        (out / f"model.part{index}").write_bytes(piece)
    facts = {
        "num_parts": len(pieces), "sha256": hashlib.sha256(blob).hexdigest(),
        "tokenizer_sha256": file_sha256(tokenizer / "tokenizer.json"), "config": network.shape.config(),
    }  # fmt: skip
    write_json(out / "parts.json", facts)


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def join_parts(source: Path, target: Path, tokenizer: Path) -> None:
    """A checkpoint folder `target`: the parts in `source` and the tokenizer that they were trained with.

    Raises ValueError, before anything is written, where a sum does not match.
    """
    facts = json.loads((source / "parts.json").read_text(encoding="utf-8"))
    blob = b"".join((source / f"model.part{index}").read_bytes() for index in range(facts["num_parts"]))
    found = hashlib.sha256(blob).hexdigest()
    if found != facts["sha256"]:
        raise ValueError(f"{source}: the parts give SHA-256 {found}, parts.json says {facts['sha256']}")
    if file_sha256(tokenizer / "tokenizer.json") != facts["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer}/tokenizer.json is not the one that {source} was trained with")
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.safetensors").write_bytes(blob)
    write_json(target / "config.json", facts["config"])
    write_json(target / "generation_config.json", GENERATION)
    for name in TOKENIZER_FILES:
        if target.resolve() != tokenizer.resolve():
            shutil.copyfile(tokenizer / name, target / name)


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of every file in `folder` but itself and the card."""
    names = sorted(p.name for p in folder.iterdir() if p.name not in ("SHA256SUMS", "MODEL_CARD.md") and p.is_file())
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
