"""Special tokens of a checkpoint as tokenizer_config.json, special_tokens_map.json and added_tokens.json name them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.processors

from quire.errors import CheckpointError

_FLAG_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass
class SpecialTokens:
    """named: bos_token, eos_token, ... to the token's text. added: tokens to add if tokenizer.json lacks them, in order."""

    named: dict[str, str] = field(default_factory=dict)
    added: list[tokenizers.AddedToken] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def add_missing(self, backend: tokenizers.Tokenizer) -> None:
        """Gives `backend` the special tokens it does not have, at the end of the vocabulary, as transformers does."""
        present = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        ordinary = [token for token in self.added if not token.special and backend.token_to_id(token.content) is None]
        special = [token for token in self.added if token.special and token.content not in present]
        backend.add_tokens(ordinary)
        backend.add_special_tokens(special)
        backend.encode_special_tokens = self.config.get("split_special_tokens") is True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file. CheckpointError when it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return values


def read_special_tokens(folder: Path) -> SpecialTokens:
    """What the folder's side files say of special tokens. Source: transformers PreTrainedTokenizerBase._from_pretrained."""
    config = read_json(folder / "tokenizer_config.json")
    values = dict(config)
    added: list[tokenizers.AddedToken] = []
    if "added_tokens_decoder" in config:
        entries = sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
        added = [_added_token(value, special=False) for _, value in entries]
    else:  # older checkpoints
        values.update(read_json(folder / "special_tokens_map.json"))
        entries = sorted(read_json(folder / "added_tokens.json").items(), key=lambda item: int(item[1]))
        added = [tokenizers.AddedToken(text, special=False, normalized=True) for text, _ in entries]
    named = {name: _content(values[name]) for name in NAMED_TOKENS if values.get(name) is not None}
    extra = values.get("additional_special_tokens") or values.get("extra_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    known = {token.content for token in added if token.special}
    for value in [*(values[name] for name in named), *extra]:
        if _content(value) not in known:
            added.append(_added_token(value, special=True))
    return SpecialTokens(named, added, config)


def apply_bos_eos_flags(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Makes add_bos_token and add_eos_token of tokenizer_config.json count where transformers 4 made them count.

    Those classes rebuilt the post-processor from the flags; DeepSeek's distilled models, whose tokenizer.json adds no bos,
    were trained and published with it. transformers 5 drops the flags. Other classes leave it to tokenizer.json, as here.
    """
    config = special.config
    flags = {name: config.get(f"add_{name}") for name in ("bos_token", "eos_token")}
    if str(config.get("tokenizer_class")).removesuffix("Fast") not in _FLAG_CLASSES or flags["bos_token"] is None:
        return
    bos, eos = (special.named.get(name) if flags[name] is True else None for name in ("bos_token", "eos_token"))
    used = [token for token in (bos, eos) if token is not None]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(used)],
    )


def _content(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise CheckpointError(f"tokenizer_config.json: a special token must be a string, not {value!r}")
    return content


def _added_token(value: Any, special: bool) -> tokenizers.AddedToken:
    if not isinstance(value, dict):
        return tokenizers.AddedToken(_content(value), special=special, normalized=False)
    flags = {key: bool(value[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
    return tokenizers.AddedToken(_content(value), special=special or bool(value.get("special")), **flags)
