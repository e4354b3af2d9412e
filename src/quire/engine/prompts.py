"""The forms a prompt may have, brought to one: text to tokenise, or token ids."""

import operator
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from quire.core.params import SamplingParams
from quire.errors import InvalidRequest

Prompt = str | Sequence[int] | Mapping[str, Any]  # text; token ids; {"prompt": text} or {"prompt_token_ids": ids}
P = TypeVar("P")
_FIELDS = ("prompt", "prompt_token_ids", "cache_salt")


@dataclass(frozen=True)
class ParsedPrompt:
    """text is None when only ids were given; token_ids is None when there is text to tokenise."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str = ""


def parse_prompt(prompt: Any) -> ParsedPrompt:
    """One prompt in any of its forms. Raises InvalidRequest."""
    if isinstance(prompt, str):
        return ParsedPrompt(prompt, None)
    if isinstance(prompt, Mapping):
        return _from_mapping(prompt)
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray):
        return ParsedPrompt(None, integer_ids(prompt))
    raise InvalidRequest(
        f"a prompt is a string, a list of token ids, or a dict with 'prompt' or 'prompt_token_ids', "
        f"not {type(prompt).__name__}",
        "prompt",
    )


def split_prompts(prompts: Any) -> list[Any]:
    """One prompt or several -> a list of prompts. A flat list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        raise InvalidRequest(f"prompts must be a prompt or a list of prompts, not {type(prompts).__name__}", "prompts")
    items = list(prompts)
    return [items] if items and _is_token_id(items[0]) else items


def one_for_each(values: Any, count: int, name: str, kind: type[P]) -> list[P | None]:
    """A single value for all prompts, or a list with one for each of them. Raises InvalidRequest."""
    if values is None:
        return [None] * count
    if not isinstance(values, Sequence):
        values = [values] * count
    if len(values) != count:
        raise InvalidRequest(f"{name} has {len(values)} entries for {count} prompts", name)
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidRequest(f"{name} must hold {kind.__name__} objects, not {type(value).__name__}", name)
    return list(values)


def integer_ids(values: Iterable[Any], name: str = "prompt") -> list[int]:
    """The values as Python ints (numpy's count too). Raises InvalidRequest."""
    items = list(values)
    if operator.countOf(map(type, items), int) == len(items):  # as good as always; one prompt may have 100,000 of them
        return items
    try:
        ids = [operator.index(item) for item in items]
    except TypeError:
        raise InvalidRequest(f"a list {name} must hold token ids, which are integers", name) from None
    if bool in map(type, items):
        raise InvalidRequest(f"a list {name} must hold token ids, not true or false", name)
    return ids


def check_token_ids(token_ids: Collection[int], vocab_size: int, name: str) -> None:
    """Raises InvalidRequest unless every id is in [0, vocab_size)."""
    if not token_ids or _all_below(token_ids, vocab_size):
        return
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"{name} holds token id {_number(token_id)}; the model has 0 to {vocab_size - 1}", name
            )


def check_param_ids(params: SamplingParams, vocab_size: int) -> None:
    """Every token id that the params name is one of the model's. Raises InvalidRequest."""
    check_token_ids(params.stop_token_ids or (), vocab_size, "stop_token_ids")
    check_token_ids(params.allowed_token_ids or (), vocab_size, "allowed_token_ids")
    check_token_ids(params.logit_bias or (), vocab_size, "logit_bias")
    for name in ("logprobs", "prompt_logprobs"):
        if (getattr(params, name) or 0) > vocab_size:
            raise InvalidRequest(f"{name} is {getattr(params, name)}; the vocabulary has {vocab_size} tokens", name)


def _from_mapping(prompt: Mapping[str, Any]) -> ParsedPrompt:
    for key in prompt:
        if key not in _FIELDS and prompt[key] is not None:
            raise InvalidRequest(f"a prompt has no field {key!r}; there are {', '.join(_FIELDS)}", str(key))
    text, ids, salt = (prompt.get(field) for field in _FIELDS)
    if text is None and ids is None:
        raise InvalidRequest("a prompt dict needs 'prompt' or 'prompt_token_ids'", "prompt")
    if text is not None and not isinstance(text, str):
        raise InvalidRequest(f"'prompt' must be a string, not {type(text).__name__}", "prompt")
    if ids is not None and (isinstance(ids, str | bytes) or not isinstance(ids, Iterable)):
        raise InvalidRequest("'prompt_token_ids' must be a list of token ids", "prompt_token_ids")
    if salt is not None and not isinstance(salt, str):
        raise InvalidRequest(f"'cache_salt' must be a string, not {type(salt).__name__}", "cache_salt")
    return ParsedPrompt(text, None if ids is None else integer_ids(ids), salt or "")


def _all_below(token_ids: Collection[int], limit: int) -> bool:
    """Whether all are in [0, limit); in a quarter of the time that min and max take."""
    try:
        return bool(np.frombuffer(array("I", token_ids), dtype=np.uint32).max() < limit)
    except OverflowError:  # negative, or not of 32 bits
        return False


def _is_token_id(value: Any) -> bool:
    return hasattr(value, "__index__")


def _number(value: int) -> str:
    return str(value) if value.bit_length() <= 64 else f"of {value.bit_length()} bits"
