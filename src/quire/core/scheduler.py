"""Scheduler: each step, divides a budget of tokens so that every sequence's num_computed_tokens catches up.

    add ──▶ WAITING ──admit──▶ RUNNING ──commit: stop, length, error──▶ FINISHED
               ▲                  │                                        ▲
               └────preempt───────┘           abort, at any moment ────────┘

Three rules make progress certain:

1. Admission reserves blocks for all tokens known so far, and leaves one free block a running sequence. So chunks
   never lack blocks; only a sequence that generates past the end of its last block does.
2. When it does and none is free, the last running sequence in policy order loses its blocks and waits at its old
   place in the queue, to be recomputed. The first in order is never a victim of others, so it goes on.
3. A sequence that lost its blocks MAX_PREEMPTIONS times is pinned: it is admitted again only together with every
   block it can ever need, so it asks for none and is never a victim. Preemptions are thus at most MAX_PREEMPTIONS a
   sequence.

Rule 3 cannot deadlock: a pinned sequence at the head of the queue keeps newer ones from being admitted, those that
run end or are preempted themselves, and an empty pool fits it because `add` refuses what does not fit. The queue is
served in order, but a newcomer whose prompt goes on with a block that a step under way computes for another lets those
behind it pass: it will find that block in the prefix cache. That step ends, and a seat is kept for it, so it waits for no
more steps than the other has chunks, if there is room. A sequence may be preempted more often than that only by its owner: `preempt`, `abandon`,
`reset_prefix_cache`.
"""

from dataclasses import replace

from quire.core.admission import check_request, first_chunk
from quire.core.batch import Batch, NewSequence, ScheduledSequence, SequenceResult, StepResult
from quire.core.config import SchedulerConfig, SchedulerStats
from quire.core.decode_steps import follow, lengthen
from quire.core.kv_manager import KVManager
from quire.core.outputs import EngineOutput
from quire.core.policy import ORDERS, WaitingQueue
from quire.core.prefix_cache import CachedPrefix, PrefixChain
from quire.core.request import Request
from quire.core.sequence import Sequence, Status
from quire.core.step import Step
from quire.core.stop import Cut, StopRule
from quire.errors import InvalidRequest, QueueFull

__all__ = ["MAX_PREEMPTIONS", "Scheduler", "SchedulerConfig", "SchedulerStats"]

MAX_PREEMPTIONS = 3
MAX_LOOKED_UP = 8192  # blocks of newcomers that let others pass, in a step: some milliseconds


class Scheduler:
    """Continuous batching over a paged KV cache. Decides only: no clock, no I/O, no randomness.

    Calls come in turns: schedule, execute elsewhere, commit of that same batch. Unattended batches may also overlap:

        schedule ─ a ─┬─ schedule_ahead ─ b ─┬─ commit a ─ schedule_ahead ─ c ─┬─ commit b ─ … ─ schedule_ahead: None ─ commit
                      └─ a runs ─────────────┴─ b runs ────────────────────────┴─ c runs

    So a sequence's tokens may be fewer than what is computed of it, and it may have ended by a token that is not known yet; what is
    computed of it then is dropped by commit. Blocks that it gives back go to batches that run after all that still write to them.

    add and abort may come at any moment between calls; the scheduler is not safe for concurrent threads.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.kv = KVManager(config)
        self.pool = self.kv.pool
        self._order = ORDERS[config.policy]
        self._waiting = WaitingQueue(self._order)
        self._running: dict[int, Sequence] = {}
        self._held: dict[str, list[Sequence]] = {}
        self._requests: dict[str, dict[int, Sequence]] = {}  # sequences that have not ended, by request and index
        self._removed: list[int] = []
        self._in_flight: list[Batch] = []  # oldest first
        self._prompt_goes_alone = False
        self._some_let_others_pass = False
        self._stuck: tuple[int, int] | None = None
        self._next_seq_id = 0
        self._num_preemptions = 0
        self._num_step_tokens = 0

    # ---- what callers ask for ----

    def add(self, request: Request) -> None:
        """Takes in a request; its sequences wait. Those that a replay shows to have ended are not run again.

        Raises ClientError: it can never fit, its id is in use, or too many requests wait.
        """
        check_request(request, self.config)
        if request.id in self._requests:
            raise InvalidRequest(f"a request with id {request.id!r} is already here", "request_id")
        limit = self.config.max_num_queued_reqs
        if limit is not None:
            num_seats = self.config.max_num_seqs - len(self._running)
            if self._waiting.num_requests >= limit + num_seats:
                raise QueueFull(
                    f"{self._waiting.num_requests} requests wait; the limit is --max-num-queued-reqs {limit}"
                )
        sequences = self._sequences_of(request)
        if not sequences:
            return
        self._requests[request.id] = {sequence.index: sequence for sequence in sequences}
        if self.config.enable_prefix_caching and len(sequences) > 1:
            self._held[request.id] = sequences[1:]
            del sequences[1:]
        for sequence in sequences:
            self._waiting.push(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one of its n sequences, without an output. Its blocks are free at once.

        Unknown and ended ids are ignored. If a step is under way, what it gives for the request is dropped.
        """
        for sequence in list(self._requests.get(request_id, {}).values()):
            if index is None or sequence.index == index:
                self._end(sequence)

    def preempt(self, request_id: str) -> None:
        """Takes the blocks of a request's running sequences: they wait and are recomputed.

        If a step is under way, what it gives for them is dropped, and comes again.
        """
        for sequence in self._requests.get(request_id, {}).values():
            if sequence.status is Status.RUNNING:
                self._preempt(sequence)

    def reset_prefix_cache(self) -> None:
        """Forgets all cached blocks, such as after a change of weights. What runs is preempted and recomputed."""
        for sequence in list(self._running.values()):
            self._preempt(sequence)
        if self.kv.cache is not None:
            self.kv.cache.reset()

    def has_work(self) -> bool:
        """True while a sequence has not ended."""
        return bool(self._requests)

    def stats(self) -> SchedulerStats:
        """How things stand now."""
        num_running = len(self._running)
        num_held = sum(len(sequences) for sequences in self._held.values())
        cache = self.kv.cache
        return SchedulerStats(
            running=num_running,
            waiting=len(self._waiting) + num_held,
            kv_cache_usage=1.0 - self.pool.num_free / self.pool.num_usable,
            prefix_cache_queries=0 if cache is None else cache.num_queries,
            prefix_cache_hits=0 if cache is None else cache.num_hits,
            num_preemptions=self._num_preemptions,
            num_step_tokens=self._num_step_tokens,
        )

    def check(self) -> None:
        """Proves the block pool sound; raises RuntimeError if it is not. For tests and debugging."""
        self.pool.check(self._running.values())

    # ---- one step ----

    def schedule(self) -> Batch:
        """Decides the next step: running sequences first, decodes before chunks, then the queue in order."""
        if self._in_flight:
            raise RuntimeError("schedule() called again before commit() of the last batch")
        step = self._put_together()
        return self._send(self._batch_of(step))

    def schedule_ahead(self) -> Batch | None:
        """Decides on the step after the one under way, before anyone knows what that gives.

        None when it must be known first: a sequence needs the host, blocks lack, or nobody is sure to go on. Call it again, or
        schedule, after the next commit.
        """
        if len(self._in_flight) != 1 or not self._in_flight[0].unattended:
            return None
        newcomer = self._next_to_admit()
        if newcomer is None and self._in_flight[0].decode_steps:
            batch = follow(self._in_flight[0], self._running, self.kv, self.config)
            if batch is not None:
                return self._send(batch)
        if not self._goes_ahead(newcomer):
            return None
        step = self._put_together()
        return self._send(self._batch_of(step)) if step.rows else None

    def commit(self, batch: Batch, result: StepResult) -> list[EngineOutput]:
        """Takes in what the step gave: appends tokens, ends sequences, files full blocks in the prefix cache.

        Returns an output for each sequence that got tokens or ended, in batch order.
        Raises RuntimeError if the result is not one of this batch.
        """
        if not self._in_flight or batch is not self._in_flight[0]:
            raise RuntimeError("commit() of a batch that is not the one under way")
        del self._in_flight[0]
        outputs = []
        for row, sequence_result in zip(batch.scheduled, result.results, strict=True):
            if sequence_result.seq_id != row.seq_id:
                raise RuntimeError(f"result for sequence {sequence_result.seq_id} where {row.seq_id} was scheduled")
            sequence = self._running.get(row.seq_id)
            if sequence is not None:  # else it has ended, or was aborted or preempted meanwhile
                sequence.num_confirmed_tokens += row.num_new_tokens
                num_given = len(sequence_result.token_ids)
                if batch.decode_steps and num_given != row.num_new_tokens and sequence_result.error is None:
                    raise RuntimeError(f"sequence {row.seq_id} got {num_given} tokens in {row.num_new_tokens} steps")
                output = self._accept(sequence, sequence_result)
                if output is not None:
                    outputs.append(output)
        return outputs

    def runs(self, seq_id: int) -> bool:
        """Whether a sequence holds blocks."""
        return seq_id in self._running

    def admitted(self, batch: Batch) -> list[str]:
        """Ids of the requests whose sequences the batch under way takes from the queue."""
        running = [self._running[row.seq_id] for row in batch.added if row.seq_id in self._running]
        return list(dict.fromkeys(sequence.request.id for sequence in running))

    def rows_of(self, batch: Batch) -> list[NewSequence]:
        """For each row of the batch under way, what a runner must be told to compute it if it had never heard of it.

        For a second try after the step failed: send these as `added`, the same ids as `removed`, and no new_block_ids.
        """
        rows = []
        for row in batch.scheduled:
            sequence = self._running[row.seq_id]
            before = sequence.num_computed_tokens - row.num_new_tokens
            rows.append(replace(sequence.as_new(), num_computed_tokens=before))
        return rows

    def abandon(self, batch: Batch) -> None:
        """Ends the last batch under way without results: its sequences lose their blocks and are recomputed."""
        if not self._in_flight or batch is not self._in_flight[-1]:
            raise RuntimeError("abandon() of a batch that is not the one under way")
        del self._in_flight[-1]
        for row in batch.scheduled:
            if row.seq_id in self._running:
                self._preempt(self._running[row.seq_id])
        self._removed = [*batch.removed, *self._removed]  # the runner may not have heard of these

    def abandon_all(self) -> None:
        """Abandons every batch under way."""
        for batch in reversed(self._in_flight):
            self.abandon(batch)

    def stop_lengthening(self) -> None:
        """From now on every batch is one step."""
        self.config = replace(self.config, max_decode_steps=0)

    # ---- scheduling ----

    def _put_together(self) -> Step:
        step = Step(self.config.max_num_batched_tokens)
        if self._prompt_goes_alone:
            self._prompt_goes_alone = False
            self._admit(step)
        if not step.rows:
            self._some_let_others_pass = False
            self._continue_running(step)
            if not step.preempted:
                self._admit(step)
        return step

    def _batch_of(self, step: Step) -> Batch:
        self._num_step_tokens = step.num_tokens
        may_overlap = self.config.max_decode_steps > 0 and len(step.rows) > 0
        unattended = may_overlap and all(self._running[seq_id].goes_unattended for seq_id in step.rows)
        decode_steps = self._lengthen(step) if unattended else 0
        return Batch(list(step.rows.values()), step.added, self._removed, decode_steps, unattended=unattended)

    def _send(self, batch: Batch) -> Batch:
        self._in_flight.append(batch)
        if not batch.follows:  # a runner is told of the others later
            self._removed = []
        return batch

    def _lengthen(self, step: Step) -> int:
        """Number of decoding steps that the step is made to be; 0 = it stays one step of any kind."""
        settled = not step.added and not step.preempted and not self._prompt_goes_alone
        one_token_each = len(step.rows) == self._num_step_tokens
        if not settled or not one_token_each:
            return 0
        max_steps = 1 if self._some_let_others_pass else self.config.max_decode_steps  # they may join the next
        return lengthen(step.rows, self._running, self.kv, max_steps)

    def _next_to_admit(self) -> Sequence | None:
        """The sequence that the next step admits if nothing changes until then, and there is one."""
        sequence = self._waiting.peek()
        has_seat = len(self._running) < self.config.max_num_seqs
        return sequence if sequence is not None and has_seat and not self._is_stuck(sequence) else None

    def _goes_ahead(self, newcomer: Sequence | None) -> bool:
        """Whether a step can be put together while another is under way: nobody in it needs the host or others' blocks."""
        if newcomer is not None and not self._joins_ahead(newcomer):
            return False
        running = self._running.values()
        size = self.config.block_size
        needs = sum(1 for s in running if s.num_computed_tokens == len(s.block_ids) * size and s.num_left > 0)
        return needs <= self.pool.num_free and all(s.goes_unattended for s in running)

    def _joins_ahead(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence can be admitted while a step is under way. Not if it was preempted from that very step, whose
        results could not be told from those of its new life."""
        under_way = sequence.num_preemptions and any(
            row.seq_id == sequence.seq_id for batch in self._in_flight for row in batch.scheduled
        )
        return sequence.goes_unattended and not under_way

    def _continue_running(self, step: Step) -> None:
        block_size = self.config.block_size
        chunks = []
        for sequence in list(self._running.values()):
            if sequence.status is not Status.RUNNING:
                continue  # preempted a moment ago
            if sequence.num_computed_tokens + 1 < len(sequence.token_ids):
                chunks.append(sequence)
            elif step.budget and (sequence.num_computed_tokens < len(sequence.token_ids) or sequence.num_left > 0):
                if sequence.num_computed_tokens < len(sequence.block_ids) * block_size:
                    step.give(sequence.decode_row)
                    sequence.num_computed_tokens += 1
                else:
                    self._continue(sequence, 1, step)
        if step.rows:
            step.budget = min(step.budget, self.config.tokens_beside(step.num_tokens))
        for sequence in chunks:
            num_new = min(len(sequence.token_ids) - sequence.num_computed_tokens, step.budget)
            if num_new and sequence.status is Status.RUNNING:
                self._continue(sequence, num_new, step)

    def _continue(self, sequence: Sequence, num_new: int, step: Step) -> None:
        new_block_ids = self._grow(sequence, num_new, step)
        if new_block_ids is not None:
            step.give(ScheduledSequence(sequence.seq_id, num_new, new_block_ids))
            sequence.num_computed_tokens += num_new

    def _grow(self, sequence: Sequence, num_new: int, step: Step) -> list[int] | None:
        """Blocks for the sequence's next tokens, others' if need be; None if it had to give up its own instead."""
        while (new_block_ids := self.kv.grow(sequence, num_new)) is None:
            victim = self._victim()
            step.take_back(victim.seq_id)
            step.preempted = True
            self._preempt(victim)
            if victim is sequence:
                return None
        return new_block_ids

    def _victim(self) -> Sequence:
        """The last running sequence in policy order that is not pinned."""
        return max((s for s in self._running.values() if s.num_preemptions < MAX_PREEMPTIONS), key=self._order)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave_running(sequence)
        sequence.lose_blocks()
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.push(sequence)

    def _admit(self, step: Step) -> None:
        begun = self.kv.begun(self._running.values()) if self._waiting else set()
        passed: list[Sequence] = []
        num_looked_up = 0
        while step.budget and num_looked_up < MAX_LOOKED_UP:
            if len(self._running) + len(passed) >= self.config.max_num_seqs:
                break  # who takes a seat may keep it for thousands of steps: those that let others pass have theirs
            sequence = self._waiting.peek()
            if sequence is None or self._is_stuck(sequence) or (self._in_flight and not self._joins_ahead(sequence)):
                break
            found = self.kv.match(sequence)
            if not sequence.num_preemptions and self.kv.is_begun(sequence, found, begun):
                self._waiting.pop(Status.WAITING)
                passed.append(sequence)
                num_looked_up += 8 + len(found)
            elif self._place(sequence, found, step):
                begun |= self.kv.begun((sequence,))
            else:
                break
        for sequence in passed:
            self._waiting.push(sequence)
        self._some_let_others_pass = bool(passed)

    def _place(self, sequence: Sequence, found: list[CachedPrefix], step: Step) -> bool:
        """Admits the head of the queue, with the cached blocks `found`, if budget and blocks allow."""
        num_cached = len(found) * self.config.block_size
        num_new = first_chunk(len(sequence.token_ids) - num_cached, step.budget, self.config)
        if not num_new:
            self._prompt_goes_alone = True
            return False
        pinned = sequence.num_preemptions >= MAX_PREEMPTIONS
        num_tokens = sequence.max_kv_tokens if pinned else len(sequence.token_ids)
        if not self.kv.admit(sequence, found, num_tokens, self._num_spare()):
            self._stuck = (sequence.seq_id, self._room())
            return False
        self._stuck = None
        self._waiting.pop(Status.RUNNING)
        self._running[sequence.seq_id] = sequence
        step.added.append(sequence.as_new())
        step.give(ScheduledSequence(sequence.seq_id, num_new))
        sequence.num_computed_tokens += num_new
        return True

    def _is_stuck(self, sequence: Sequence) -> bool:
        """True if it lacked blocks and there is no more room since. Saves looking up a long prompt every step."""
        return self._stuck is not None and self._stuck[0] == sequence.seq_id and self._room() <= self._stuck[1]

    def _room(self) -> int:
        return self.pool.num_free - self._num_spare()

    def _num_spare(self) -> int:
        # Blocks that stay free at an admission, one for two running sequences. With none, newcomers would soon be the victims of their
        # growth; with one each, 5 % of the cache lie idle under chat-shaped load in place of 4 % (tests/core/test_kv_share.py).
        return (len(self._running) + 1) // 2

    # ---- committing ----

    def _accept(self, sequence: Sequence, result: SequenceResult) -> EngineOutput | None:
        if result.error is not None:
            return self._fail(sequence, result.error)
        caught_up = sequence.num_confirmed_tokens >= len(sequence.token_ids)
        if caught_up != bool(result.token_ids):
            raise RuntimeError(f"sequence {sequence.seq_id} got {len(result.token_ids)} tokens, caught up: {caught_up}")
        if sequence.prompt_logprobs is not None and result.prompt_logprobs:
            sequence.prompt_logprobs += result.prompt_logprobs
        if not caught_up:
            self.kv.file(sequence)
            return None
        if self._held:
            self._release_siblings(sequence)
        return self._extend(sequence, result, sequence.stop.cut(sequence.num_generated, result.token_ids))

    def _extend(self, sequence: Sequence, result: SequenceResult, cut: Cut) -> EngineOutput:
        token_ids = result.token_ids[: cut.num_kept]
        sequence.token_ids.extend(token_ids)
        self.kv.file(sequence)
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        if cut.finish_reason is not None:
            self._end(sequence)
        return EngineOutput(
            sequence.request.id,
            sequence.index,
            token_ids,
            None if result.logprobs is None else result.logprobs.first(cut.num_kept),
            prompt_logprobs,
            cut.finish_reason,
            cut.stop_reason,
            sequence.num_cached_tokens or 0,
        )

    def _fail(self, sequence: Sequence, error: str) -> EngineOutput:
        self.kv.distrust(sequence)
        self._end(sequence)
        return EngineOutput(
            sequence.request.id,
            sequence.index,
            [],
            finish_reason="error",
            num_cached_tokens=sequence.num_cached_tokens or 0,
            error=error,
        )

    # ---- lifetimes ----

    def _sequences_of(self, request: Request) -> list[Sequence]:
        sequences = []
        for index in range(request.params.n):
            stop = StopRule(request, self.config.max_model_len)
            sequence = Sequence(self._next_seq_id, index, request, stop, PrefixChain((request.cache_salt,)))
            self._next_seq_id += 1
            emitted = sequence.token_ids[sequence.num_prompt_tokens :].tolist()
            if stop.cut(0, emitted).finish_reason is None:
                sequences.append(sequence)
        return sequences

    def _release_siblings(self, first: Sequence) -> None:
        """The prompt is computed, or who computed it is gone: sequences that waited for it enter the queue."""
        for sequence in self._held.pop(first.request.id, ()):
            self._waiting.push(sequence)

    def _end(self, sequence: Sequence) -> None:
        """Takes a sequence out of wherever it is; its blocks are free."""
        request_id = sequence.request.id
        status, sequence.status = sequence.status, Status.FINISHED
        if status is Status.RUNNING:
            self._leave_running(sequence)
        elif status is Status.WAITING:
            self._waiting.discard(sequence)
        elif request_id in self._held:
            self._held[request_id].remove(sequence)
        if status is not Status.HELD:
            self._release_siblings(sequence)
        siblings = self._requests[request_id]
        del siblings[sequence.index]
        if not siblings:
            del self._requests[request_id]

    def _leave_running(self, sequence: Sequence) -> None:
        del self._running[sequence.seq_id]
        self._removed.append(sequence.seq_id)
        self.pool.free(sequence.block_ids)
