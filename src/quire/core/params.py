"""How to choose tokens: SamplingParams and BeamSearchParams, with the names, defaults and bounds that users of vLLM know."""

import enum
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from quire.core.legacy_params import accepts_legacy
from quire.core.structured import StructuredOutputsParams, structured_outputs
from quire.errors import InvalidRequest

MAX_N = 64
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_LOGIT_BIAS = 300
MAX_BAD_WORDS = 128
MAX_SEED = 2**64 - 1
LOGIT_BIAS_LIMIT = 100.0
MIN_TEMPERATURE = 0.01  # below it, softmax of fp32 logits overflows into one-hot: the same tokens, fewer surprises


class RequestOutputKind(enum.IntEnum):
    """What each streamed RequestOutput holds: all text so far, the text since the last one, or only the finished whole."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@accepts_legacy
@dataclass
class SamplingParams:
    """How to choose the tokens of one request. Fields, defaults and bounds are those of vLLM's SamplingParams.

    n                    sequences to return for the prompt, 1..64
    presence_penalty, frequency_penalty   [-2, 2], over generated tokens
    repetition_penalty   > 0, over prompt and generated tokens; 1 = off
    temperature          [0, 2]; 0 = greedy
    top_p (0, 1], top_k (0 or -1 = all), min_p [0, 1]
    seed                 0..2^64-1; the draw at each position depends on seed, sequence index and position alone
    stop                 strings that end the text (removed from it unless include_stop_str_in_output)
    stop_token_ids       token ids that end the sequence
    max_tokens           None = up to the model length; min_tokens forbids eos and stop ids before that many
    logprobs             how many top log-probabilities a generated token; 0 = the chosen one alone, -1 = the whole vocabulary
    prompt_logprobs      the same for prompt tokens
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
        return replace(self, **changes)


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
        _integer(self.beam_width, "beam_width", 1, MAX_N)
        _integer(self.max_tokens, "max_tokens", 1, None)
        _number(self.temperature, "temperature", 0.0, 2.0)
        _number(self.length_penalty, "length_penalty", -10.0, 10.0)


def field_names() -> tuple[str, ...]:
    """Names of all SamplingParams fields, in order."""
    return tuple(f.name for f in fields(SamplingParams))


def _check_numbers(p: SamplingParams) -> None:
    _integer(p.n, "n", 1, MAX_N)
    _number(p.presence_penalty, "presence_penalty", -2.0, 2.0)
    _number(p.frequency_penalty, "frequency_penalty", -2.0, 2.0)
    _number(p.repetition_penalty, "repetition_penalty", 0.0, 100.0, above=True)
    _number(p.temperature, "temperature", 0.0, 2.0)
    _number(p.top_p, "top_p", 0.0, 1.0, above=True)
    _number(p.min_p, "min_p", 0.0, 1.0)
    _integer(p.top_k, "top_k", -1, None)
    if p.top_k == -1:
        p.top_k = 0
    if p.seed is not None:
        _integer(p.seed, "seed", -(2**63), MAX_SEED)
        p.seed %= 2**64
    if p.max_tokens is not None:
        _integer(p.max_tokens, "max_tokens", 1, 2**31 - 1)
    _integer(p.min_tokens, "min_tokens", 0, 2**31 - 1)
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        raise InvalidRequest(f"min_tokens {p.min_tokens} is above max_tokens {p.max_tokens}", "min_tokens")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(p, name) is not None:
            _integer(getattr(p, name), name, -1, 2**31 - 1)
    if p.greedy and p.n > 1:
        raise InvalidRequest(f"n must be 1 at temperature 0 (all {p.n} sequences would be equal)", "n")


def _check_strings(p: SamplingParams) -> None:
    for name in (
        "ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output",
    ):  # fmt: skip
        if not isinstance(getattr(p, name), bool):
            raise InvalidRequest(f"{name} must be true or false, not {getattr(p, name)!r}", name)
    if len(p.stop_strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has {len(p.stop_strings)} strings, the limit is {MAX_STOP_STRINGS}", "stop")
    for text in p.stop_strings:
        if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= MAX_STOP_STRING_BYTES:
            raise InvalidRequest(f"a stop string must have 1 to {MAX_STOP_STRING_BYTES} bytes", "stop")
    if p.stop_strings and not p.detokenize:
        raise InvalidRequest("stop strings need detokenize=True; use stop_token_ids without it", "stop")
    if p.structured_outputs is not None and p.ignore_eos:
        raise InvalidRequest(
            "ignore_eos and structured_outputs exclude each other: what is complete must end", "ignore_eos"
        )
    if len(p.bad_words) > MAX_BAD_WORDS:
        raise InvalidRequest(f"bad_words has {len(p.bad_words)} entries, the limit is {MAX_BAD_WORDS}", "bad_words")
    if any(not word for word in p.bad_words):
        raise InvalidRequest("bad_words holds an empty string", "bad_words")


def _integer(value: Any, name: str, low: int, high: int | None) -> None:
    bound = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidRequest(f"{name} must be an integer {bound}, not {_short(value)}", name)


def _number(value: Any, name: str, low: float, high: float, above: bool = False) -> None:
    if not _is_finite(value) or value < low or value > high or (above and value <= low):
        bound = f"in {'(' if above else '['}{low:g}, {high:g}]"
        raise InvalidRequest(f"{name} must be a number {bound}, not {_short(value)}", name)


def _is_finite(value: Any) -> bool:
    """A number that is neither NaN nor infinite; an integer of any size is finite (and may not fit a float)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _strings(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(s, str) for s in items):
        raise InvalidRequest(f"{name} must be a string or a list of strings, not {_short(value)}", name)
    return list(items)


def _token_ids(value: Any, name: str) -> list[int]:
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequest(f"{name} must be a list of token ids, not {_short(value)}", name)
    for token_id in value:
        _integer(token_id, name, 0, 2**31 - 1)
    return sorted(value) if isinstance(value, set | frozenset) else list(value)


def _logit_bias(value: Any) -> dict[int, float] | None:
    if not value:
        return None
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise InvalidRequest(f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers", "logit_bias")
    bias: dict[int, float] = {}
    for key, number in value.items():
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
            key = int(key)  # JSON objects have string keys
        _integer(key, "logit_bias", 0, 2**31 - 1)
        if not _is_finite(number):
            raise InvalidRequest(
                f"logit_bias of token {key} must be a finite number, not {_short(number)}", "logit_bias"
            )
        bias[key] = float(max(-LOGIT_BIAS_LIMIT, min(LOGIT_BIAS_LIMIT, number)))
    return bias


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
