"""The fields of a request: type, range, default and meaning of each, in one table for everyone who makes requests.

SamplingParams checks values with it, the HTTP side adds the fields that it alone has (server/openai/fields.py), and from both are made
the reference page, the bounds in /openapi.json and the tests of values at and past each bound.
"""

import math
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequest

INTEGER, NUMBER, BOOLEAN, STRING, OBJECT = "integer", "number", "boolean", "string", "object"
STRINGS, TOKEN_IDS, LIST = "list of strings", "list of token ids", "list"
LISTS = (STRINGS, TOKEN_IDS, LIST)
_SIZES = {"array": ("minItems", "maxItems"), "object": ("minProperties", "maxProperties")}
LARGEST = 2**31 - 1
MAX_SEED = 2**64 - 1
MAX_STOP_STRING_BYTES = 256
LOGIT_BIAS_LIMIT = 100.0


@dataclass(frozen=True)
class Field:
    """One field of a request.

    kind       type of its value, one of those above
    meaning    what it does, in a line
    low, high  ends of its range, both allowed (above: low itself is not); of a list or object, how many entries it may have
    default    what holds without it, in words; "" = nothing
    """

    kind: str
    meaning: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    default: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises InvalidRequest, naming the field, unless the value has the type and is in the range."""
        if self.kind == INTEGER:
            fits = isinstance(value, int) and not isinstance(value, bool) and self._holds(value)
        elif self.kind == NUMBER:
            fits = is_finite(value) and self._holds(value)
        elif self.kind == BOOLEAN:
            fits = isinstance(value, bool)
        else:
            self._check_size(name, value)
            return
        if not fits:
            raise InvalidRequest(f"{name} must be {self.allowed()}, not {short(value)}", name)

    def allowed(self) -> str:
        """The type and range in words."""
        if self.kind == BOOLEAN:
            return "true or false"
        if self.kind == NUMBER:
            return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        if self.kind == INTEGER:
            return f"an integer {self._interval()}".rstrip()
        noun = self.kind if self.kind in LISTS else f"{'an' if self.kind == OBJECT else 'a'} {self.kind}"
        return noun if self.high is None else f"{noun}, at most {self.high:g} entries"

    @property
    def json_type(self) -> str:
        """Its type in JSON Schema's words."""
        return "array" if self.kind in LISTS else self.kind

    def json_schema(self) -> dict[str, float]:
        """Its range in JSON Schema's words."""
        low, high = _SIZES.get(self.json_type, ("minimum", "maximum"))
        low = "exclusiveMinimum" if self.above else low
        return {name: value for name, value in ((low, self.low), (high, self.high)) if value is not None}

    def _holds(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        return self.high is None or value <= self.high

    def _interval(self) -> str:
        if self.low is None:
            return ""
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"

    def _check_size(self, name: str, value: Any) -> None:
        if not isinstance(value, list | tuple | dict):
            return
        if self.high is not None and len(value) > self.high:
            raise InvalidRequest(f"{name} has {len(value)} entries, the limit is {self.high:g}", name)
        if self.low is not None and len(value) < self.low:
            raise InvalidRequest(f"{name} has {len(value)} entries; it needs at least {self.low:g}", name)


def is_finite(value: Any) -> bool:
    """A number that is neither NaN nor infinite; an integer of any size is finite (and may not fit a float)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def short(value: Any) -> str:
    """The value as an error shows it."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Of SamplingParams, and of every route that generates.
SAMPLING: dict[str, Field] = {
    "n": Field(INTEGER, "answers to give; 1 at temperature 0", 1, 64, default="1"),
    "temperature": Field(NUMBER, "0 = the likeliest token each time; above 0 and below 0.01 counts as 0.01", 0.0, 2.0, default="1"),
    "top_p": Field(NUMBER, "draw from the likeliest tokens that have this share together", 0.0, 1.0, above=True, default="1"),
    "top_k": Field(INTEGER, "draw from so many likeliest tokens; 0 and -1 = all", -1, default="0"),
    "min_p": Field(NUMBER, "leave out tokens below this share of the likeliest one's probability", 0.0, 1.0, default="0"),
    "presence_penalty": Field(NUMBER, "taken off the logit of each token that was generated", -2.0, 2.0, default="0"),
    "frequency_penalty": Field(NUMBER, "the same, for each time that it was", -2.0, 2.0, default="0"),
    "repetition_penalty": Field(NUMBER, "divides logits of tokens of prompt and output; 1 = off", 0.01, 100.0, default="1"),
    "seed": Field(INTEGER, "equal seeds give equal answers", -(2**63), MAX_SEED, default="a new one each time"),
    "max_tokens": Field(INTEGER, "longest answer, its reasoning included", 1, LARGEST, default="16; of chats, what the model length leaves"),
    "min_tokens": Field(INTEGER, "the answer cannot end before it has so many", 0, LARGEST, default="0"),
    "thinking_token_budget": Field(INTEGER, "longest reasoning: the mark that ends it is forced after so many tokens", 0, LARGEST),
    "stop": Field(STRINGS, f"the text ends before any of these; a string alone counts as one; 1 to {MAX_STOP_STRING_BYTES} bytes each", 0, 16),
    "stop_token_ids": Field(TOKEN_IDS, "the answer ends after any of these"),
    "include_stop_str_in_output": Field(BOOLEAN, "the stop string, or the token that ends, stays in the text", default="false"),
    "ignore_eos": Field(BOOLEAN, "go on after the model's own end", default="false"),
    "logit_bias": Field(OBJECT, f"token id to what is added to its logit, cut to ±{LOGIT_BIAS_LIMIT:g}", 0, 300),
    "allowed_token_ids": Field(TOKEN_IDS, "no other token is chosen; not an empty list", 1),
    "bad_words": Field(STRINGS, "strings that are never written", 0, 128),
    "logprobs": Field(INTEGER, "log-probabilities of so many likeliest tokens at each position; -1 = all (offline)", -1, LARGEST),
    "prompt_logprobs": Field(INTEGER, "the same at each position of the prompt", -1, LARGEST),
    "skip_special_tokens": Field(BOOLEAN, "leave special tokens out of the text", default="true"),
    "spaces_between_special_tokens": Field(BOOLEAN, "a space between special tokens that are shown", default="true"),
    "detokenize": Field(BOOLEAN, "False: token ids alone, no text", default="true"),
    "structured_outputs": Field(OBJECT, "what the answer must look like: one of json, json_object, regex, choice, grammar"),
}  # fmt: skip
OFFLINE_ONLY = ("detokenize",)
NULLABLE = frozenset(("seed", "max_tokens", "thinking_token_budget", "logprobs", "prompt_logprobs"))


_NUMBERS = tuple((name, field) for name, field in SAMPLING.items() if field.kind in (INTEGER, NUMBER, BOOLEAN))


def check_numbers(params: Any) -> None:
    """Every number and boolean of SamplingParams. Raises InvalidRequest."""
    values, defaults = vars(params), vars(type(params))
    for name, field in _NUMBERS:
        default = defaults.get(name)
        value = values.get(name, default)  # what another process sent may lack fields that have defaults
        if value is not default and not (value is None and name in NULLABLE):  # most are as they come
            field.check(name, value)
