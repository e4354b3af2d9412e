"""SamplingParams fields of other versions: a value that asks for nothing is accepted, any other is refused by name with the way out."""

import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from quire.errors import InvalidRequest

T = TypeVar("T")
_PLAIN = (type(None), bool, int, float, list, dict)


@dataclass(frozen=True)
class LegacyField:
    """A field that is no longer, or not yet, one.

    neutral  values that ask for nothing
    advice   what to do instead
    """

    neutral: tuple[Any, ...]
    advice: str


_BEAM = "use LLM.beam_search(prompts, BeamSearchParams(...))"
_EXPERIMENT = "it is not implemented"
LEGACY_FIELDS: dict[str, LegacyField] = {
    "best_of": LegacyField((None, 1), "ask for n sequences and keep those with the highest cumulative_logprob"),
    "use_beam_search": LegacyField((None, False), _BEAM),
    "length_penalty": LegacyField((None, 1.0), _BEAM),
    "early_stopping": LegacyField((None, False), _BEAM),
    "truncate_prompt_tokens": LegacyField((None,), "cut the list of prompt token ids before the call"),
    "logits_processors": LegacyField((None, []), "use logit_bias, allowed_token_ids or bad_words"),
    "max_new_tokens": LegacyField((None,), "it is called max_tokens"),
    "extra_args": LegacyField((None, {}), _EXPERIMENT),
    "flat_logprobs": LegacyField((None, False), _EXPERIMENT),
    "logprob_token_ids": LegacyField((None,), "use logprobs=-1, which has every token"),
    "prompt_logprob_token_ids": LegacyField((None,), "use prompt_logprobs=-1, which has every token"),
    "prompt_logprob_start": LegacyField((None, 0), _EXPERIMENT),
    "stream_interval": LegacyField((None, 1), _EXPERIMENT),
    "skip_reading_prefix_cache": LegacyField((None, False), "give the prompt its own cache_salt"),
    "repetition_detection": LegacyField((None,), _EXPERIMENT),
    "watermarking": LegacyField((None,), _EXPERIMENT),
    "routed_experts_prompt_start": LegacyField((None, 0), _EXPERIMENT),
    "trace_decode_token_ids": LegacyField((None, False), _EXPERIMENT),
    "skip_clone": LegacyField((None, False, True), "parameters are never changed by a request, so nothing is cloned"),
}


def accepts_legacy(cls: type[T]) -> type[T]:
    """Class decorator: keyword arguments that are no field are checked by name, where a dataclass raises a bare TypeError."""
    init = cls.__init__
    known = dict.fromkeys(inspect.signature(cls).parameters)

    @functools.wraps(init)
    def checked_init(self: T, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("guided_decoding") is not None:
            kwargs.setdefault("structured_outputs", kwargs["guided_decoding"])  # its name before
        kwargs.pop("guided_decoding", None)
        unknown = {name: kwargs.pop(name) for name in list(kwargs) if name not in known}
        if unknown:
            _refuse_legacy(unknown, known, kwargs.get("n", args[0] if args else 1))
        init(self, *args, **kwargs)

    patched: Any = cls
    patched.__init__ = checked_init
    return cls


def _refuse_legacy(unknown: dict[str, Any], known: Iterable[str], n: Any) -> None:
    """`n` is the value given for the field n: best_of equal to it asks for nothing more."""
    for name, value in unknown.items():
        field = LEGACY_FIELDS.get(name)
        if field is None:
            near = get_close_matches(name, [*known, *LEGACY_FIELDS], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise InvalidRequest(f"SamplingParams has no field {name!r}{hint}", name)
        neutral = (*field.neutral, n) if name == "best_of" else field.neutral
        if not any(_same(value, allowed) for allowed in neutral):
            raise InvalidRequest(f"SamplingParams({name}={value!r}) cannot be honoured: {field.advice}", name)


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and isinstance(value, _PLAIN) and value == allowed
