"""Batch: one step's decision in plain ints; StepResult: what the step gave. Both cross process borders, so both are plain data.

A runner keeps one row of state for each sequence it has been told of (tokens, block table, params). A Batch says what changes:

    added      rows to create: new sequences, and preempted ones that come back
    scheduled  rows that compute this step, in batch order (the same on every rank)
    removed    rows to forget: finished, aborted or preempted since the last step; applied before `added`
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from quire.core.params import SamplingParams


@dataclass(frozen=True)
class NewSequence:
    """State a runner needs once, when it first hears of a sequence (or again after a preemption).

    token_ids            prompt and, after a preemption or replay, generated tokens too
    num_prompt_tokens    how many of token_ids are prompt
    num_computed_tokens  how many already have their keys and values in `block_ids` (prefix-cache hits)
    block_ids            block table so far, in logical order
    index                which of the request's n sequences this is; part of the random key
    """

    seq_id: int
    index: int
    token_ids: Sequence[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    think_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One row of the step: computes tokens [num_computed, num_computed + num_new_tokens) of its sequence.

    It samples exactly when that interval ends at the sequence's last token so far. In a batch of decoding steps (Batch.decode_steps)
    it samples after each of these tokens, and the next of them is what it has just sampled.
    new_block_ids  appended to its block table before the step
    """

    seq_id: int
    num_new_tokens: int
    new_block_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """One step's decision, or that of several decoding steps in a row.

    unattended    its tokens can be chosen without a word from the host, so the next batch may be asked for before anyone knows
                  them; of a row that goes on meanwhile, a token not known yet is the one that the last batch with it chose
    decode_steps  0: one step. k: nothing but decoding, k steps in a row, unattended; a row computes one token in each of the
                  first num_new_tokens of them, then rests
    follows       of decoding steps: the rows of the batch before it, in the same order, go on; a row with num_new_tokens 0 has
                  ended since, or is about to
    """

    scheduled: list[ScheduledSequence]
    added: list[NewSequence] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    decode_steps: int = 0
    follows: bool = False
    unattended: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens computed this step."""
        return sum(s.num_new_tokens for s in self.scheduled)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the token that is there first, then the most likely ones in falling order.

    rank  of that first token among all, 1 = most likely
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


@dataclass(frozen=True, slots=True)
class LogprobColumns:
    """TokenLogprobs of n positions, all with equally many tokens, as columns of numbers: thousands come in each step, and an object
    for each would take the host longer than the step takes the device.

    token_ids  int32 [n, width]; logprobs fp32 [n, width]; ranks int32 [n]: the fields of TokenLogprobs, in the machine's byte order
    Raises ValueError for lengths that are not these: columns come from another process.
    """

    token_ids: bytes = b""
    logprobs: bytes = b""
    ranks: bytes = b""

    def __post_init__(self) -> None:
        size, num_bytes = len(self.token_ids), len(self.ranks)
        whole = size >= num_bytes and size % num_bytes == 0 if num_bytes else not size
        if num_bytes % 4 or len(self.logprobs) != size or not whole:
            raise ValueError(f"columns of {size}, {len(self.logprobs)} and {num_bytes} bytes do not belong together")

    @classmethod
    def of(cls, entries: Iterable[TokenLogprobs]) -> "LogprobColumns":
        """The same as columns."""
        ids, logprobs, ranks = array("i"), array("f"), array("i")
        for entry in entries:
            ids.extend(entry.token_ids)
            logprobs.extend(entry.logprobs)
            ranks.append(entry.rank)
        return cls(ids.tobytes(), logprobs.tobytes(), ranks.tobytes())

    def __len__(self) -> int:
        return len(self.ranks) // 4

    def __iter__(self) -> Iterator[TokenLogprobs]:
        ids, logprobs, ranks = array("i", self.token_ids), array("f", self.logprobs), array("i", self.ranks)
        width = len(ids) // max(len(ranks), 1)
        for i, rank in enumerate(ranks):
            part = slice(i * width, (i + 1) * width)
            yield TokenLogprobs(ids[part].tolist(), logprobs[part].tolist(), rank)

    def __add__(self, other: "LogprobColumns") -> "LogprobColumns":
        return LogprobColumns(
            self.token_ids + other.token_ids, self.logprobs + other.logprobs, self.ranks + other.ranks
        )

    def first(self, count: int) -> "LogprobColumns":
        """Those of the first positions; all if there are no more."""
        if count >= len(self):
            return self
        part = slice(count * (len(self.token_ids) // len(self)))
        return LogprobColumns(self.token_ids[part], self.logprobs[part], self.ranks[: 4 * count])


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What one scheduled sequence got.

    token_ids        accepted tokens: none for a prefill chunk, one for plain decoding, more with drafts
    logprobs         one entry an accepted token, when params.logprobs is set
    prompt_logprobs  entries for the prompt positions computed this step, when params.prompt_logprobs is set;
                     position 0 has none and is left out
    error            why this sequence alone failed (its logits became NaN); it has no tokens then
    """

    seq_id: int
    token_ids: list[int]
    logprobs: LogprobColumns | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One SequenceResult for each scheduled sequence, in batch order."""

    results: list[SequenceResult]
