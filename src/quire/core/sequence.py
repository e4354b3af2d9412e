"""Sequence: one growing token stream of a request."""

import enum
from array import array

from quire.core.batch import NewSequence, ScheduledSequence, TokenLogprobs
from quire.core.params import SamplingParams
from quire.core.prefix_cache import PrefixChain
from quire.core.request import Request
from quire.core.stop import StopRule

MAX_LOGPROBS_ALONE = 32  # top log-probabilities that a runner tells without a word from the host


class Status(enum.Enum):
    """Where a sequence is. The order means nothing.

    HELD      waits until a sibling has computed their common prompt; in no queue
    WAITING   in the waiting queue, holds no blocks; new, or preempted
    RUNNING   holds blocks; the runner knows it
    FINISHED  ended; nothing refers to it but dead queue entries
    """

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One growing token stream. Only the scheduler changes it.

        0 ─── in the KV cache ───▶ num_computed_tokens ─── known, not computed ───▶ len(token_ids)
        0 ─── prompt ───▶ num_prompt_tokens ─── generated ───▶ len(token_ids)
        0 ─── slots that it holds ───▶ len(block_ids) · block_size

    There is no prefill or decode phase: num_computed_tokens catches up with len(token_ids), and a token is sampled
    when it does. It moves when a step is scheduled, so while steps are under way it includes what they compute, and may
    be past the last known token; num_confirmed_tokens follows it when they are committed.

    seq_id             also the order of arrival
    token_ids          as uint32: made once of the prompt's ids, and from then on copied, cut and compared as memory
    index              which of the request's n sequences
    num_cached_tokens  prompt tokens found in the prefix cache when first admitted; None before
    num_preemptions    times that it lost its blocks
    prompt_logprobs    collected so far; None when none are wanted or they have been reported
    prefix             where it stands in the prefix cache
    decode_row         its row in every step that computes one token and needs no new block
    runs_alone         a runner can choose its tokens without a word from the host
    """

    __slots__ = (
        "block_ids", "decode_row", "index", "num_cached_tokens", "num_computed_tokens", "num_confirmed_tokens",
        "num_preemptions", "num_prompt_tokens", "prefix", "prompt_logprobs", "request", "runs_alone", "seq_id", "status", "stop", "token_ids",
    )  # fmt: skip

    def __init__(self, seq_id: int, index: int, request: Request, stop: StopRule, prefix: PrefixChain) -> None:
        emitted = request.emitted_token_ids[index] if index < len(request.emitted_token_ids) else ()
        self.seq_id = seq_id
        self.index = index
        self.request = request
        self.stop = stop
        self.prefix = prefix
        self.token_ids = array("I", request.prompt_token_ids)
        self.token_ids.extend(emitted)
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed_tokens = self.num_confirmed_tokens = 0
        self.block_ids: list[int] = []
        self.status = Status.HELD
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        wanted = request.params.prompt_logprobs is not None and index == 0 and not emitted
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if wanted else None
        self.decode_row = ScheduledSequence(seq_id, 1)
        unguided = not (request.bad_words_token_ids or request.grammar or request.think_token_ids)
        self.runs_alone = unguided and _is_chosen_simply(request.params)

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, replayed ones included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def goes_unattended(self) -> bool:
        """Whether its next step needs no word from the host."""
        return self.runs_alone and self.prompt_logprobs is None

    @property
    def num_left(self) -> int:
        """Tokens that it may still get, beside those that steps under way give. Once its prompt is scheduled to the end."""
        num_pending = self.num_computed_tokens + 1 - len(self.token_ids)
        return self.stop.max_tokens - self.num_generated - num_pending

    @property
    def max_kv_tokens(self) -> int:
        """The most tokens whose keys and values it can ever need; those of the last token are not."""
        return self.num_prompt_tokens + self.stop.max_tokens - 1

    def lose_blocks(self) -> None:
        """Forgets all that was computed; the tokens stay."""
        self.block_ids = []
        self.num_computed_tokens = self.num_confirmed_tokens = 0
        self.prefix.restart()
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = []

    def as_new(self) -> NewSequence:
        """What a runner must be told when the sequence is admitted. Lists are copies: the runner appends to its own."""
        params = self.request.params
        if params.prompt_logprobs is not None and self.prompt_logprobs is None:
            params = params.clone(prompt_logprobs=None)  # a sibling reports them, or they have been reported
        return NewSequence(
            seq_id=self.seq_id,
            index=self.index,
            token_ids=self.token_ids[:],
            num_prompt_tokens=self.num_prompt_tokens,
            num_computed_tokens=self.num_computed_tokens,
            block_ids=list(self.block_ids),
            params=params,
            eos_token_ids=self.request.eos_token_ids,
            bad_words_token_ids=self.request.bad_words_token_ids,
            grammar=self.request.grammar,
            think_token_ids=self.request.think_token_ids,
        )


def _is_chosen_simply(params: SamplingParams) -> bool:
    """Whether the device alone can choose each token, and tell of it what is asked."""
    edits = params.allowed_token_ids or params.logit_bias or params.min_tokens
    few_logprobs = params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS_ALONE
    return few_logprobs and not edits
