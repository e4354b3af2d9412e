"""Tokenizers that come without tokenizer.json (sentencepiece models, vocab.json with merges.txt), by way of transformers.

transformers imports torch, which must stay out of the processes that only handle text, so it works in a child process:
`python -m quire.text.convert FOLDER` prints {"tokenizer": tokenizer.json, "named": {"eos_token": ...}}.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tokenizers

from quire.errors import CheckpointError
from quire.text.special_tokens import SpecialTokens

TOKENIZER_FILES = ("vocab.json", "vocab.txt", "tekken.json")
TOKENIZER_SUFFIXES = (".model", ".tiktoken")
_TIMEOUT_S = 300


def convert(folder: Path) -> tuple[tokenizers.Tokenizer, SpecialTokens]:
    """The tokenizer that transformers makes of the folder. CheckpointError with transformers' reason when it cannot."""
    if not any(path.name in TOKENIZER_FILES or path.suffix in TOKENIZER_SUFFIXES for path in folder.iterdir()):
        # transformers would make an empty tokenizer of the class that config.json names
        raise CheckpointError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor {', '.join(TOKENIZER_FILES)} or *.model"
        )
    command = [sys.executable, "-m", "quire.text.convert", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"the tokenizer in {folder} was not converted within {_TIMEOUT_S} s") from None
    if result.returncode != 0:
        raise CheckpointError((result.stderr.strip().split("\n") or ["the conversion ended without a word"])[-1])
    answer = json.loads(result.stdout)
    return tokenizers.Tokenizer.from_str(answer["tokenizer"]), SpecialTokens(answer["named"])


def load_hf_tokenizer(folder: Path) -> Any:
    """transformers' AutoTokenizer for a local folder; code that the folder may hold is never run."""
    # Imported here because transformers takes seconds and imports torch; tokenizer.json needs neither.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # any parser's error can come up from a broken file
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"no tokenizer can be read from {folder}: {reason}") from None


def _main(folder: Path) -> None:
    hf = load_hf_tokenizer(folder)
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"{folder} has no tokenizer.json, and transformers has no fast tokenizer for it")
    named = {name: value for name, value in hf.special_tokens_map.items() if isinstance(value, str)}
    sys.stdout.write(json.dumps({"tokenizer": backend.to_str(), "named": named}))


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]))
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
