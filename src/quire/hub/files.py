"""Which files of a model quire reads: what to download of a repository, and what a folder lacks."""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

# Everything but weights, as patterns over paths within the repository; "/" is matched by none of the stars.
SIDE_FILES = (
    "config.json", "generation_config.json", "quantize_config.json", "hf_quant_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.model", "*.tiktoken",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
# load_format -> (patterns of weight files, the one-file name, the index)
_WEIGHTS = {
    "safetensors": ("*.safetensors", "model.safetensors", "model.safetensors.index.json"),
    "pt": ("pytorch_model*.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
}
# load formats without weights; the second asks for the tokenizer alone
_NO_WEIGHTS = ("dummy", "tokenizer")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
# Other forms of the same weights, and additions to them.
_NOT_THE_MODEL = ("consolidated", "adapter")


def wanted(names: Iterable[str], load_format: str) -> list[str]:
    """Those of a repository's files that are needed to load a model this way; no weights for "dummy" and "tokenizer"."""
    names = sorted(names)
    side = [name for name in names if any(_matches(name, pattern) for pattern in SIDE_FILES)]
    if load_format in _NO_WEIGHTS:
        return side
    pattern, single, index = _weights(load_format)
    weights = [n for n in names if _matches(n, pattern) and not n.startswith(_NOT_THE_MODEL)]
    if single in weights and index not in names:
        weights = [single]
    return side + weights + [name for name in names if name == index and weights]


def patterns(load_format: str) -> tuple[list[str], list[str]]:
    """(patterns to take, patterns to leave) for a client that picks files by pattern."""
    if load_format in _NO_WEIGHTS:
        return list(SIDE_FILES), []
    pattern, _, index = _weights(load_format)
    leave = [f"{prefix}*" for prefix in _NOT_THE_MODEL] + [f"*/{pattern}"]
    return [*SIDE_FILES, pattern, index], leave


def has_weights(names: Iterable[str], load_format: str) -> bool:
    """Whether `wanted` finds weights among these files, if it looks for any."""
    return load_format in _NO_WEIGHTS or any(_matches(n, _weights(load_format)[0]) for n in wanted(names, load_format))


def missing(folder: Path, load_format: str) -> list[str]:
    """What a downloaded model lacks; [] when config and weights are complete ("tokenizer": when there is one)."""
    if load_format == "tokenizer":
        found = any(
            _matches(path.name, pattern) for path in folder.iterdir() for pattern in _TOKENIZERS if path.is_file()
        )
        return [] if found else ["tokenizer.json"]
    lost = [] if (folder / "config.json").is_file() else ["config.json"]
    if load_format in _NO_WEIGHTS:
        return lost
    pattern, single, index = _weights(load_format)
    if (folder / index).is_file():
        return lost + [name for name in _indexed(folder / index) if not (folder / name).is_file()]
    present = [p.name for p in folder.glob(pattern) if p.is_file() and not p.name.startswith(_NOT_THE_MODEL)]
    return lost + (_missing_parts(present) if present else [single])


def _weights(load_format: str) -> tuple[str, str, str]:
    return _WEIGHTS["pt" if load_format == "pt" else "safetensors"]


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _indexed(index: Path) -> list[str]:
    """The weight files that an index names; one that cannot be read counts as missing itself."""
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [index.name + " (unreadable)"]


def _missing_parts(names: list[str]) -> list[str]:
    """The other files of series such as model-00001-of-00003.safetensors."""
    lost = []
    for name in names:
        part = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", name)
        if part:
            total = int(part[2])
            lost += [f"{part[1]}-{i:05d}-of-{total:05d}{part[3]}" for i in range(1, total + 1)]
    return sorted(set(lost) - set(names))
