"""How to choose tokens: SamplingParams and BeamSearchParams, with the names, defaults and bounds that users of vLLM know."""

import enum
from dataclasses import dataclass, field, fields, replace
from typing import Any

from quire.core.bounds import (
    INTEGER,
    LARGEST,
    LOGIT_BIAS_LIMIT,
    MAX_SEED,
    MAX_STOP_STRING_BYTES,
    NUMBER,
    SAMPLING,
    Field,
    check_numbers,
    is_finite,
    short,
)
from quire.core.legacy_params import accepts_legacy
from quire.core.structured import StructuredOutputsParams, structured_outputs
from quire.errors import InvalidRequest

MIN_TEMPERATURE = 0.01  # below it, softmax of fp32 logits overflows into one-hot: the same tokens, fewer surprises


class RequestOutputKind(enum.IntEnum):
    """What each streamed RequestOutput holds: all text so far, the text since the last one, or only the finished whole."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@accepts_legacy
@dataclass
class SamplingParams:
    """How to choose the tokens of one request. Fields, defaults and bounds are those of vLLM's SamplingParams; core/bounds.py lists
    them.

    n                    sequences to return for the prompt, 1..64
    presence_penalty, frequency_penalty   [-2, 2], over generated tokens
    repetition_penalty   [0.01, 100], over prompt and generated tokens; 1 = off
    temperature          [0, 2]; 0 = greedy
    top_p (0, 1], top_k (0 or -1 = all), min_p [0, 1]
    seed                 0..2^64-1; the draw at each position depends on seed, sequence index and position alone
    stop                 strings that end the text (removed from it unless include_stop_str_in_output)
    stop_token_ids       token ids that end the sequence
    max_tokens           None = up to the model length; min_tokens forbids eos and stop ids before that many
    logprobs             how many top log-probabilities a generated token; 0 = the chosen one alone, -1 = the whole vocabulary
    prompt_logprobs      the same for prompt tokens
    thinking_token_budget  reasoning is ended after so many tokens; None = when the model ends it
    logit_bias           token id -> value added to its logit, clamped to ±100
    structured_outputs   what the output must look like: StructuredOutputsParams, or an object of its fields
    Raises InvalidRequest naming the field.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    thinking_token_budget: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self.normalise()

    def normalise(self) -> None:
        """Checks every field and brings it to its canonical form; called again when a request is made of the params."""
        self.stop = _strings(self.stop, "stop")
        self.stop_token_ids = _token_ids(self.stop_token_ids, "stop_token_ids") or []
        self.bad_words = _strings(self.bad_words, "bad_words")
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _token_ids(self.allowed_token_ids, "allowed_token_ids")
            if not self.allowed_token_ids:
                raise InvalidRequest("allowed_token_ids is empty: no token could be chosen", "allowed_token_ids")
        self.structured_outputs = structured_outputs(self.structured_outputs)
        _check_numbers(self)
        _check_strings(self)
        self.logit_bias = _logit_bias(self.logit_bias)
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        self.output_kind = RequestOutputKind(self.output_kind)

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, empty when there is none."""
        return self.stop if isinstance(self.stop, list) else []

    def clone(self, **changes: Any) -> "SamplingParams":
        """A validated copy with some fields changed."""
        if changes:
            return replace(self, **changes)
        copy = object.__new__(type(self))  # as replace does it, without looking at each field
        copy.__dict__.update(self.__dict__)
        copy.normalise()
        return copy


@dataclass
class BeamSearchParams:
    """Beam search: keeps the `beam_width` most likely sequences each step; no sampling.

    length_penalty  scores are divided by length ** length_penalty
    """

    beam_width: int = 4
    max_tokens: int = 16
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, bound in _BEAM.items():
            bound.check(name, getattr(self, name))


_BEAM = {
    "beam_width": Field(INTEGER, "sequences kept at each step", 1, 64),
    "max_tokens": Field(INTEGER, "longest continuation", 1),
    "temperature": Field(NUMBER, "of the scores", 0.0, 2.0),
    "length_penalty": Field(NUMBER, "exponent of the length that scores are divided by", -10.0, 10.0),
}


def field_names() -> tuple[str, ...]:
    """Names of all SamplingParams fields, in order."""
    return tuple(f.name for f in fields(SamplingParams))


def _check_numbers(p: SamplingParams) -> None:
    check_numbers(p)
    if p.top_k == -1:
        p.top_k = 0
    if p.seed is not None:
        p.seed %= MAX_SEED + 1
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        raise InvalidRequest(f"min_tokens {p.min_tokens} is above max_tokens {p.max_tokens}", "min_tokens")
    if p.greedy and p.n > 1:
        raise InvalidRequest(f"n must be 1 at temperature 0 (all {p.n} sequences would be equal)", "n")


def _check_strings(p: SamplingParams) -> None:
    for text in p.stop_strings:
        if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= MAX_STOP_STRING_BYTES:
            raise InvalidRequest(f"a stop string must have 1 to {MAX_STOP_STRING_BYTES} bytes", "stop")
    if p.stop_strings and not p.detokenize:
        raise InvalidRequest("stop strings need detokenize=True; use stop_token_ids without it", "stop")
    if p.structured_outputs is not None and p.ignore_eos:
        raise InvalidRequest(
            "ignore_eos and structured_outputs exclude each other: what is complete must end", "ignore_eos"
        )
    if any(not word for word in p.bad_words):
        raise InvalidRequest("bad_words holds an empty string", "bad_words")


def _strings(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(s, str) for s in items):
        raise InvalidRequest(f"{name} must be a string or a list of strings, not {short(value)}", name)
    SAMPLING[name].check(name, items)
    return list(items)


_TOKEN_ID = Field(INTEGER, "id of a token", 0, LARGEST)


def _token_ids(value: Any, name: str) -> list[int]:
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequest(f"{name} must be a list of token ids, not {short(value)}", name)
    for token_id in value:
        _TOKEN_ID.check(name, token_id)
    return sorted(value) if isinstance(value, set | frozenset) else list(value)


def _logit_bias(value: Any) -> dict[int, float] | None:
    if not value:
        return None
    if not isinstance(value, dict):
        raise InvalidRequest("logit_bias must map token ids to numbers", "logit_bias")
    SAMPLING["logit_bias"].check("logit_bias", value)
    bias: dict[int, float] = {}
    for key, number in value.items():
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
            key = int(key)  # JSON objects have string keys
        _TOKEN_ID.check("logit_bias", key)
        if not is_finite(number):
            raise InvalidRequest(
                f"logit_bias of token {key} must be a finite number, not {short(number)}", "logit_bias"
            )
        bias[key] = float(max(-LOGIT_BIAS_LIMIT, min(LOGIT_BIAS_LIMIT, number)))
    return bias
