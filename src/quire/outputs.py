"""What a caller gets back: the shapes and names that users of vLLM know. Plain dataclasses, no torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(frozen=True)
class Logprob:
    """Log-probability of one token at one position.

    logprob        natural logarithm, of the model's distribution before temperature, penalties and masks
    rank           1 = most likely of the whole vocabulary
    decoded_token  the token as text; None without a tokenizer
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[int, Logprob] | None]  # one entry a prompt token; the first has nothing before it: None
SampleLogprobs = Sequence[dict[int, Logprob]]  # one entry a generated token: the chosen token first, then the likeliest


class LazyLogprobs(Sequence[dict[int, Logprob]]):
    """SampleLogprobs whose dicts are made when they are looked at: most never are, and thousands take longer than the model.

    make  gives the one of a number from `first` to `end` - 1
    A copy made by pickle or copy.deepcopy is a plain list.
    """

    def __init__(self, make: Callable[[int], dict[int, Logprob]], first: int, end: int) -> None:
        self._make = make
        self._numbers = range(first, end)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob]]: ...

    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | list[dict[int, Logprob]]:
        if isinstance(index, slice):
            return list(map(self._make, self._numbers[index]))
        return self._make(self._numbers[index])

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return map(self._make, self._numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened to a request, in seconds of the monotonic clock (differences mean something, dates do not)."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass
class CompletionOutput:
    """One of the n continuations of a prompt.

    text           without the stop string (unless include_stop_str_in_output) and, by default, without special tokens
    token_ids      what the model chose, a final EOS included
    cumulative_logprob  sum over token_ids; None unless logprobs were asked for
    finish_reason  None while it grows; "stop", "length", "abort" or "error"
    stop_reason    the stop string or stop token id that ended it; None for EOS
    error          what went wrong, when finish_reason is "error"
    In a DELTA stream text, token_ids and logprobs hold only what is new; cumulative_logprob is always the whole sum.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """The state of one request: its prompt and its continuations.

    prompt             as text; None when token ids were given
    prompt_logprobs    None unless asked for
    outputs            all n, in order; in a DELTA stream the one that grew alone
    num_cached_tokens  prompt tokens whose keys and values were found in the prefix cache
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0


@dataclass
class BeamSearchSequence:
    """One hypothesis of a beam search.

    tokens       prompt and continuation; text is all of it, as text (None without a tokenizer)
    logprobs     one entry a token of the continuation
    cum_logprob  sum of the log-probabilities of the continuation
    score        cum_logprob / (tokens of the continuation, EOS included) ** length_penalty
    """

    tokens: list[int]
    cum_logprob: float
    score: float
    logprobs: SampleLogprobs = field(default_factory=list)
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """The best `beam_width` hypotheses of one prompt, best first."""

    sequences: list[BeamSearchSequence]
