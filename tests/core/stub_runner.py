"""A runner without a model, which notices every lost or foreign token, and a harness that holds the scheduler to its promises.

The stub's KV cache stores in each slot a fingerprint of the whole prefix that ends there, and of the salt. A step reads all earlier
slots through the block table and compares them with what its own tokens say, so a stale, shared-by-mistake or unwritten slot is
seen at once. The next token is a function of the fingerprint, so the right output of a sequence is what `solo` computes alone.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from quire.core.batch import (
    Batch,
    LogprobColumns,
    NewSequence,
    ScheduledSequence,
    SequenceResult,
    StepResult,
    TokenLogprobs,
)
from quire.core.outputs import EngineOutput
from quire.core.params import SamplingParams
from quire.core.prefix_cache import PrefixCache
from quire.core.request import Request
from quire.core.scheduler import MAX_PREEMPTIONS, Scheduler, SchedulerConfig
from quire.core.sequence import Sequence, Status
from quire.errors import QueueFull

VOCAB_SIZE = 6
MASK = 2**61 - 1


class Broken(AssertionError):
    """The scheduler broke a promise."""


def require(condition: bool, *facts: object) -> None:
    if not condition:
        raise Broken(*facts)


def extend(fingerprint: int, token_id: int) -> int:
    return (fingerprint * 1_000_003 + token_id + 1) & MASK


def next_token(fingerprint: int, index: int) -> int:
    return ((fingerprint + index * 7919) * 2_654_435_761 >> 13) % VOCAB_SIZE


def fingerprints(token_ids: Iterable[int]) -> list[int]:
    found, last = [], 0
    for token_id in token_ids:
        last = extend(last, token_id)
        found.append(last)
    return found


def config_of(block_size: int, num_usable: int, max_model_len: int, excess: int = 0, **options) -> SchedulerConfig:
    """A configuration whose model length fits the pool, as an engine sees to, or is too long for it by `excess` tokens."""
    longest = min(max_model_len, num_usable * block_size + 1) + excess
    return SchedulerConfig(num_usable + 1, block_size, max_model_len=longest, **options)


def request(
    id: str, prompt: list[int], salt: str = "", priority: int = 0, eos: tuple[int, ...] = (), **params
) -> Request:
    params.setdefault("max_tokens", 4)
    replayed = params.pop("emitted", ())
    return Request(
        id, prompt, SamplingParams(**params), eos, priority=priority, cache_salt=salt, emitted_token_ids=replayed
    )


def solo(request: Request, index: int, max_model_len: int) -> tuple[list[int], str, int | None]:
    """What this sequence must give, worked out alone: tokens, finish_reason, stop_reason."""
    params, tokens = request.params, list(request.prompt_token_ids)
    generated: list[int] = []
    while True:
        token_id = next_token(fingerprints(tokens)[-1], index)
        tokens.append(token_id)
        generated.append(token_id)
        if len(generated) > params.min_tokens:
            if token_id in request.eos_token_ids and not params.ignore_eos:
                return generated, "stop", None
            if token_id in params.stop_token_ids:
                return generated, "stop", token_id
        if len(generated) == params.max_tokens or len(tokens) == max_model_len:
            return generated, "length", None


@dataclass
class Row:
    """What a runner keeps of a sequence."""

    new: NewSequence
    salt: str
    token_ids: "array[int]"
    num_computed: int
    block_ids: list[int]
    failed: bool = False


class StubRunner:
    """Executes batches as a real runner does, from the batch alone; only the salt, which a runner never sees, is told besides."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.rows: dict[int, Row] = {}
        self.kv: list[tuple[int, str] | None] = [None] * (config.num_blocks * config.block_size)
        self.unsure: set[int] = set()  # of a lost step: rows that may or may not be here
        self.last_ids: list[int] = []

    def execute(self, batch: Batch, salts: dict[int, str], failing: set[int]) -> StepResult:
        for seq_id in batch.removed:
            require(self.rows.pop(seq_id, None) is not None or seq_id in self.unsure, "removed twice", seq_id)
        for new in batch.added:
            require(new.seq_id not in self.rows, "added twice", new)
            self.rows[new.seq_id] = Row(new, salts[new.seq_id], new.token_ids, new.num_computed_tokens, new.block_ids)
        require(len(self.rows) <= self.config.max_num_seqs, "too many rows", len(self.rows))
        self._check_unattended(batch)
        require(len({s.seq_id for s in batch.scheduled}) == len(batch.scheduled), "scheduled twice", batch)
        if batch.decode_steps:
            return self._execute_decode_steps(batch, failing)
        require(batch.num_tokens <= self.config.max_num_batched_tokens, "over budget", batch)
        return StepResult(
            [self._run(s.seq_id, s.num_new_tokens, s.new_block_ids, s.seq_id in failing) for s in batch.scheduled]
        )

    def _check_unattended(self, batch: Batch) -> None:
        if batch.unattended:
            rows = [self.rows[s.seq_id] for s in batch.scheduled]
            alone = all(not r.new.params.min_tokens and (r.new.params.logprobs or 0) >= 0 for r in rows)
            alone &= all(
                r.new.params.prompt_logprobs is None or r.num_computed >= r.new.num_prompt_tokens for r in rows
            )
            require(alone and self.config.max_decode_steps > 0, "needs the host", batch)
        require(batch.unattended or not batch.decode_steps, "decoding steps need no host", batch)

    def _execute_decode_steps(self, batch: Batch, failing: set[int]) -> StepResult:
        ids, counts = [s.seq_id for s in batch.scheduled], [s.num_new_tokens for s in batch.scheduled]
        require(len(ids) <= self.config.max_num_batched_tokens, "over budget", batch)
        require(0 < batch.decode_steps == max(counts) <= self.config.max_decode_steps, "wrong count of steps", batch)
        require(
            not batch.added and (not batch.follows or (ids == self.last_ids and not batch.removed)), "new rows", batch
        )
        require(batch.follows or min(counts) > 0, "a row without a token", batch)
        self.last_ids = ids
        return StepResult([self._decode(s, s.seq_id in failing) for s in batch.scheduled])

    def _decode(self, scheduled: ScheduledSequence, fails: bool) -> SequenceResult:
        """Some steps in a row: each reads what those before it wrote. Goes on after a stop, which only the scheduler knows."""
        row = self.rows[scheduled.seq_id]
        row.block_ids += scheduled.new_block_ids
        row.failed |= fails
        if row.failed:
            return SequenceResult(scheduled.seq_id, [], error="logits are not finite")
        start = len(row.token_ids)
        for _ in range(scheduled.num_new_tokens):
            require(row.num_computed == len(row.token_ids) - 1, "decodes before its prompt is computed", row)
            self._read(row, row.num_computed)
            fingerprint = fingerprints(row.token_ids)[-1]
            self.kv[self._slot(row, row.num_computed)] = (fingerprint, row.salt)
            row.token_ids.append(next_token(fingerprint, row.new.index))
            row.num_computed += 1
        token_ids = list(row.token_ids[start:])
        return SequenceResult(scheduled.seq_id, token_ids, self._logprobs(row, token_ids))

    # Rows append to the lists that they were given, as a runner may: the scheduler must not need them any more.

    def _run(self, seq_id: int, num_new: int, new_block_ids: list[int], fails: bool) -> SequenceResult:
        row = self.rows[seq_id]
        row.block_ids += new_block_ids
        start, end = row.num_computed, row.num_computed + num_new
        if row.failed:  # in the step before, which was not known yet
            return SequenceResult(seq_id, [], error="logits are not finite")
        require(0 < num_new and end <= len(row.token_ids), "more tokens than there are", seq_id)
        require(0 not in row.block_ids, "block 0 in a table", row.block_ids)
        self._read(row, start)
        known = fingerprints(row.token_ids)
        for position in range(start, end):
            self.kv[self._slot(row, position)] = None if fails else (known[position], row.salt)
        row.num_computed = end
        row.failed = fails
        if fails:
            return SequenceResult(seq_id, [], error="logits are not finite")
        token_ids = []
        if end == len(row.token_ids):
            token_ids = [next_token(known[-1], row.new.index)]
            row.token_ids.extend(token_ids)
        return SequenceResult(seq_id, token_ids, self._logprobs(row, token_ids), self._prompt_logprobs(row, start, end))

    def _read(self, row: Row, end: int) -> None:
        expected = [(fingerprint, row.salt) for fingerprint in fingerprints(row.token_ids[:end])]
        found = [self.kv[self._slot(row, position)] for position in range(end)]
        require(found == expected, "attention read foreign or missing keys", row)

    def _slot(self, row: Row, position: int) -> int:
        size = self.config.block_size
        return row.block_ids[position // size] * size + position % size

    def _logprobs(self, row: Row, token_ids: list[int]) -> LogprobColumns | None:
        if row.new.params.logprobs is None:
            return None
        return LogprobColumns.of(TokenLogprobs([token_id], [-1.0], 1) for token_id in token_ids)

    def _prompt_logprobs(self, row: Row, start: int, end: int) -> list[TokenLogprobs] | None:
        """Logits at position p tell of the token at p + 1."""
        if row.new.params.prompt_logprobs is None:
            return None
        last = min(end + 1, row.new.num_prompt_tokens)
        return [TokenLogprobs([row.token_ids[p]], [-1.0], p) for p in range(start + 1, last)]


@dataclass
class Promise:
    """What a sequence owes: its right tokens and end. num_emitted: how many of them the caller has."""

    tokens: list[int]
    finish_reason: str
    stop_reason: int | None
    num_emitted: int = 0
    num_cached: int | None = None


@dataclass
class Harness:
    """Drives a scheduler with the stub runner and checks every promise after every event.

    batch   the oldest under way; ahead: the decoding steps that follow it
    owed    sequences that have not ended, by (request id, index)
    ended   how the others ended: a finish_reason, or "abort"
    """

    config: SchedulerConfig
    scheduler: Scheduler = field(init=False)
    runner: StubRunner = field(init=False)
    requests: dict[str, Request] = field(default_factory=dict)
    owed: dict[tuple[str, int], Promise] = field(default_factory=dict)
    ended: dict[tuple[str, int], str] = field(default_factory=dict)
    batch: Batch | None = None
    ahead: Batch | None = None
    salts: dict[int, str] = field(default_factory=dict)
    num_steps: int = 0
    num_natural_preemptions: int = 0
    num_pinned: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config)
        self.runner = StubRunner(self.config)

    # ---- events ----

    def add(self, request: Request) -> None:
        num_waiting = sum(s.index == 0 for s in self.waiting())
        limit, num_seats = self.config.max_num_queued_reqs, self.config.max_num_seqs - len(self.running())
        full = limit is not None and num_waiting >= limit + num_seats
        try:
            self.scheduler.add(request)
        except QueueFull:
            require(full, "refused though there is room in the queue", request)
            raise
        require(not full, "accepted though the queue is full", request)
        self.requests[request.id] = request
        for index in range(request.params.n):
            tokens, finish_reason, stop_reason = solo(request, index, self.config.max_model_len)
            emitted = request.emitted_token_ids[index] if request.emitted_token_ids else ()
            require(tuple(tokens[: len(emitted)]) == tuple(emitted), "the test replays wrong tokens")
            if len(emitted) < len(tokens):
                self.owed[request.id, index] = Promise(tokens, finish_reason, stop_reason, len(emitted))
            else:
                self.ended[request.id, index] = "replayed"
        self.verify()

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.scheduler.abort(request_id, index)
        for key in [k for k in self.owed if k[0] == request_id and index in (None, k[1])]:
            del self.owed[key]
            self.ended[key] = "abort"
        self.verify()

    def preempt(self, request_id: str) -> None:
        self.scheduler.preempt(request_id)
        require(all(s.request.id != request_id for s in self.running()), "preempted but running")
        self.verify()

    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()
        self.runner.kv = [None] * len(self.runner.kv)  # as if the weights had changed: nothing old may be read
        self.verify()

    def schedule(self) -> None:
        before = {s.seq_id: s.num_preemptions for s in self.running()}
        self.batch = self.scheduler.schedule()
        self.salts = {s.seq_id: s.request.cache_salt for s in self.running()}
        if not self.batch.decode_steps:
            require(self.scheduler.stats().num_step_tokens == self.batch.num_tokens, "tokens miscounted", self.batch)
        self._check_order(before)
        if self.scheduler.has_work():
            require(bool(self.batch.scheduled), "there is work, and none was scheduled")
        self._check_nobody_waits_needlessly()
        self.verify()

    def schedule_ahead(self) -> None:
        require(self.batch is not None, "the test asks for steps after none")
        self.ahead = self.ahead or self.scheduler.schedule_ahead()
        self.salts |= {s.seq_id: s.request.cache_salt for s in self.running()}
        if self.ahead is not None:
            require(self.batch.unattended and self.ahead.unattended, "the host was not asked", self.batch, self.ahead)
            require(bool(self.ahead.scheduled), "a step of nothing", self.ahead)
        self.verify()

    def commit(self, failing: set[int] = frozenset()) -> list[EngineOutput]:  # type: ignore[assignment]
        batch, self.batch, self.ahead = self.batch, self.ahead, None
        assert batch is not None
        running = {s.seq_id: s for s in self.running()}
        outputs = self.scheduler.commit(batch, self.runner.execute(batch, self.salts, failing))
        self.num_steps += 1
        for output in outputs:
            self._receive(output)
        for seq_id in failing & running.keys() & {s.seq_id for s in batch.scheduled}:
            key = (running[seq_id].request.id, running[seq_id].index)
            require(self.ended.get(key) == "error", "a failed sequence did not end", key)
        self.verify()
        return outputs

    def commit_retried(self) -> None:
        """The runner's step is lost half-way, after it wrote garbage; each row is then computed alone, as if it were new."""
        batch, self.batch = self.batch, None
        assert batch is not None
        self.runner.unsure = {*batch.removed, *(new.seq_id for new in batch.added)}
        self.runner.execute(batch, self.salts, failing=set(self.salts))
        results: list[SequenceResult] = []
        removed = batch.removed
        for row, new in zip(batch.scheduled, self.scheduler.rows_of(batch), strict=True):
            alone = Batch([replace(row, new_block_ids=[])], [new], [*removed, row.seq_id])
            results += self.runner.execute(alone, self.salts, set()).results
            removed = []
        for output in self.scheduler.commit(batch, StepResult(results)):
            self._receive(output)
        self.num_steps += 1
        self.verify()

    def abandon(self, executed: bool) -> None:
        """The step is lost before or after the runner did it."""
        batch, ahead, self.batch, self.ahead = self.batch, self.ahead, None, None
        assert batch is not None
        told = [batch] if ahead is None else [batch, ahead]
        self.runner.unsure = {
            seq_id for each in told for seq_id in (*each.removed, *(new.seq_id for new in each.added))
        }
        if executed:
            self.runner.execute(batch, self.salts, failing=set())
        if executed and ahead is not None:
            self.runner.execute(ahead, self.salts, failing=set())
        self.scheduler.abandon_all()
        require(
            not any(s.seq_id in {r.seq_id for r in batch.scheduled} for s in self.running()), "abandoned but running"
        )
        self.verify()

    def step(self, failing: set[int] = frozenset()) -> list[EngineOutput]:  # type: ignore[assignment]
        self.schedule()
        return self.commit(failing)

    def drain(self) -> None:
        """Runs until nothing is left; the bound is the work of computing everything MAX_PREEMPTIONS + 1 times from scratch."""
        while self.batch is not None:
            self.commit()
        work = sum(len(self.requests[id].prompt_token_ids) + len(p.tokens) for (id, _), p in self.owed.items())
        for _ in range(work * (MAX_PREEMPTIONS + 1) + 1):
            if not self.scheduler.has_work():
                break
            if self.batch is None:
                self.schedule()
            self.schedule_ahead()
            self.commit()
        while self.batch is not None:
            self.commit()
        require(not self.scheduler.has_work() and not self.owed, "work never ends", self.owed)
        require(self.scheduler.pool.num_free == self.config.num_blocks - 1, "blocks were lost")
        self.step()
        require(not self.runner.rows, "the runner was not told of ended sequences", self.runner.rows)

    # ---- what must hold ----

    def running(self) -> list[Sequence]:
        return list(self.scheduler._running.values())

    def waiting(self) -> list[Sequence]:
        return [
            s for siblings in self.scheduler._requests.values() for s in siblings.values() if s.status is Status.WAITING
        ]

    def order(self, sequence: Sequence) -> tuple[int, int]:
        return (sequence.request.priority if self.config.policy == "priority" else 0, sequence.seq_id)

    def verify(self) -> None:
        self.scheduler.check()
        live = [(id, index) for id, siblings in self.scheduler._requests.items() for index in siblings]
        require(sorted(live) == sorted(self.owed), "live sequences differ", live, self.owed)
        stats = self.scheduler.stats()
        require(stats.running == len(self.running()) <= self.config.max_num_seqs, "running count", stats)
        require(stats.running + stats.waiting == len(self.owed), "waiting count", stats)
        require(len(self.scheduler._waiting) == len(self.waiting()), "queue length", stats)
        require(0.0 <= stats.kv_cache_usage <= 1.0, "usage", stats)
        if not stats.running:
            require(self.scheduler.pool.num_free == self.config.num_blocks - 1, "blocks held by nobody", stats)
        size = self.config.block_size
        for sequence in self.waiting():
            require(not sequence.block_ids and not sequence.num_computed_tokens, "waits and holds", sequence.seq_id)
        for sequence in self.running():
            require(
                sequence.num_computed_tokens <= len(sequence.block_ids) * size,
                "computed past its blocks",
                sequence.seq_id,
            )
            promise = self.owed[sequence.request.id, sequence.index]
            longest = sequence.num_prompt_tokens + sequence.request.params.max_tokens
            most = min(longest, self.config.max_model_len) - 1  # the last token's keys are never needed
            require(sequence.num_computed_tokens <= most, "computed in vain", sequence.seq_id)
            require(len(sequence.block_ids) <= self.config.blocks_for(most), "blocks in vain", sequence.seq_id)
            require(sequence.num_generated == promise.num_emitted, "tokens kept back or retracted", sequence.seq_id)

    def _receive(self, output: EngineOutput) -> None:
        key = (output.request_id, output.index)
        require(key in self.owed, "output for a sequence that has ended", output, self.ended.get(key))
        promise, request = self.owed[key], self.requests[output.request_id]
        require(0 <= output.num_cached_tokens <= len(request.prompt_token_ids), "cached tokens", output)
        require(promise.num_cached in (None, output.num_cached_tokens), "cached tokens changed", output)
        promise.num_cached = output.num_cached_tokens
        start, end = promise.num_emitted, promise.num_emitted + len(output.token_ids)
        require(output.token_ids == promise.tokens[start:end], "wrong tokens", output, promise)
        self._check_logprobs(output, request, first=start == 0)
        promise.num_emitted = end
        if output.finish_reason is None:
            require(end < len(promise.tokens) and end > start, "should have ended", output, promise)
            return
        if output.finish_reason != "error":
            require(end == len(promise.tokens), "ended too early", output, promise)
            require((output.finish_reason, output.stop_reason) == (promise.finish_reason, promise.stop_reason), output)
        require((output.error is not None) == (output.finish_reason == "error"), "error text", output)
        del self.owed[key]
        self.ended[key] = output.finish_reason

    def _check_logprobs(self, output: EngineOutput, request: Request, first: bool) -> None:
        if output.error is None and request.params.logprobs is not None:
            require([e.token_ids[0] for e in output.logprobs or []] == output.token_ids, "logprobs", output)
        else:
            require(output.logprobs is None, "logprobs not asked for", output)
        wanted = first and output.index == 0 and output.error is None and request.params.prompt_logprobs is not None
        prompt = request.prompt_token_ids
        expected = [([prompt[p]], p) for p in range(1, len(prompt))] if wanted else None
        entries = output.prompt_logprobs
        found = None if entries is None else [(e.token_ids, e.rank) for e in entries]
        require(found == expected, "prompt logprobs", output)

    def _check_order(self, before: dict[int, int]) -> None:
        """Victims are the last in order, never pinned; the queue is served from its head."""
        assert self.batch is not None
        order = self.order
        victims = [s for s in self.waiting() if s.seq_id in before]
        self.num_natural_preemptions += len(victims)
        for victim in victims:
            require(before[victim.seq_id] < MAX_PREEMPTIONS, "a pinned sequence was preempted", victim.seq_id)
            for other in self.running():
                pinned = other.num_preemptions >= MAX_PREEMPTIONS
                require(pinned or order(other) < order(victim), "the wrong victim", victim.seq_id, other.seq_id)
        self.num_pinned += sum(before[victim.seq_id] == MAX_PREEMPTIONS - 1 for victim in victims)
        added = [s for s in self.running() if s.seq_id in {new.seq_id for new in self.batch.added}]
        kept = [s for s in self.waiting() if not self._may_let_others_pass(s)]
        if added and kept:
            require(max(map(order, added)) < min(map(order, kept)), "served out of order")

    def _may_let_others_pass(self, sequence: Sequence) -> bool:
        """Whether a newcomer's prompt goes on, past what is cached of it, with a block that the step computes for another."""
        cache, size, newcomer = self.scheduler.kv.cache, self.config.block_size, sequence.token_ids[:-1]
        if cache is None or sequence.num_preemptions or sequence.prompt_logprobs is not None:
            return False
        found = PrefixCache.match(cache, sequence.prefix.root, newcomer, len(newcomer) // size)
        num_cached = len(found) * size  # perhaps fewer than when the step was put together
        return any(
            num_cached < (end := (other.num_confirmed_tokens // size + 1) * size) <= len(newcomer)
            and other.num_computed_tokens >= end
            and other.token_ids[:end] == newcomer[:end]
            and other.request.cache_salt == sequence.request.cache_salt
            for other in self.running()
        )

    def _check_nobody_waits_needlessly(self) -> None:
        assert self.batch is not None
        if any(s.num_preemptions for s in self.waiting()):
            return  # after a preemption in this step nobody is admitted
        waiting = sorted((s for s in self.waiting() if not self._may_let_others_pass(s)), key=self.order)
        if not waiting:
            return
        head = waiting[0]
        before = [s for s in self.waiting() if self.order(s) < self.order(head)]  # those that let it pass, if they do
        if not all(map(self._fits, before)):
            return  # it may well be that one of these is the head, and does not fit
        has_seat = len(self.running()) + len(before) < self.config.max_num_seqs
        require(not (has_seat and self._fits(head)), "waits though there is room", head.seq_id)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there is room for it in the step and in the pool, with nothing of it cached."""
        num_tokens = len(sequence.token_ids)
        budget = self.config.max_num_batched_tokens - self.scheduler.stats().num_step_tokens
        fits_step = budget > 0 and (self.config.enable_chunked_prefill or num_tokens <= budget)
        return fits_step and self.scheduler.pool.num_free >= self.config.blocks_for(num_tokens) + len(self.running())


def replayed(old: Harness) -> Harness:
    """A new engine after the death of the old one: every live request comes again, with the tokens that its client has."""
    new = Harness(replace(old.config, max_num_queued_reqs=None))
    new.requests = {id: r for id, r in old.requests.items() if all(key[0] != id for key in old.owed)}
    for id in sorted({id for id, _ in old.owed}, key=lambda id: int(id[1:])):
        request = old.requests[id]
        emitted, given_up = [], []
        for index in range(request.params.n):
            tokens, _, _ = solo(request, index, old.config.max_model_len)
            promise, end = old.owed.get((id, index)), old.ended.get((id, index))
            emitted.append(tuple(tokens if promise is None else tokens[: promise.num_emitted]))
            if end in ("abort", "error"):
                given_up.append(index)
                emitted[index] = ()
        new.add(replace(request, emitted_token_ids=tuple(emitted)))
        for index in given_up:
            new.abort(id, index)
    return new
