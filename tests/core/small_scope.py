"""Exhaustive small-scope model: every interleaving of few events on the real Scheduler, breadth first.

    python tests/core/small_scope.py [--max-states N] [--forced N]

Three requests, four usable blocks, steps of one or two tokens. Events, each tried in every state that allows it:

    add(r)      for each request not yet added, in any order
    ahead       a step after the one under way, where the runner can do several in a row
    schedule    then commit, apart from each other, so that everything else may come between them
    abort(r)    at any moment while r lives
    preempt(r)  forced, at any moment while r runs, a bounded number of times in all
    fail(r)     the commit in which the sequence of r fails alone

Two states are one if they differ only in names of blocks, sequences and prefixes. After each event the Harness checks all its promises
(stub_runner.py); a violation is printed with the shortest trace that leads to it. Since every step of a scheduler with work computes
a token and preemptions are bounded, no request waits for ever; every 32nd new state is drained to see that it is so.
"""

import argparse
import copyreg
import gc
import hashlib
import io
import itertools
import marshal
import pickle
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from stub_runner import Broken, Harness, request

from quire.core.batch import Batch
from quire.core.request import Request
from quire.core.scheduler import MAX_PREEMPTIONS, SchedulerConfig

# Prompts share a beginning; each sequence can need three of the four blocks; c ends by a stop token or by length.
REQUESTS = {
    r.id: r
    for r in (
        request("a", [0, 0, 1], max_tokens=5, temperature=0.0, priority=1),
        request("b", [0], max_tokens=6, temperature=0.0, priority=0),
        request("c", [0, 0], max_tokens=6, temperature=0.0, priority=2, eos=(0,)),
    )
}
Event = tuple[str, str]
BREAKS = (Broken, RuntimeError, LookupError, TypeError, ValueError)
DRAIN_EVERY = 32


def _find(id: str) -> Request:
    return REQUESTS[id]


class _Pickler(pickle.Pickler):
    dispatch_table = {**copyreg.dispatch_table, Request: lambda r: (_find, (r.id,))}


def freeze(harness: Harness) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(harness)
    return buffer.getvalue()


@dataclass
class Model:
    """What one exploration found."""

    config: SchedulerConfig
    max_forced: int
    max_states: int
    num_states: int = 0
    num_events: int = 0
    num_natural_preemptions: int = 0
    complete: bool = False
    violation: str | None = None

    def summary(self) -> str:
        end = self.violation or ("complete, no violation" if self.complete else "cut off, no violation")
        return f"{self.num_states} states, {self.num_events} events, {self.num_natural_preemptions} preemptions, {end}"

    def explore(self) -> None:
        """Visits states breadth first until there are no more, max_states are seen, or a promise is broken."""
        gc.disable()  # no cycles here, and collections over millions of states cost more than the states
        try:
            self._explore()
        finally:
            gc.enable()

    def _explore(self) -> None:
        start = Harness(self.config)
        seen = {digest(0, start)}
        parents: list[tuple[int, Event]] = [(-1, ("start", ""))]
        frontier = deque([(0, 0, freeze(start))])
        while frontier:
            state, num_forced, frozen = frontier.popleft()
            for event in list(events(pickle.loads(frozen), num_forced < self.max_forced)):
                harness = pickle.loads(frozen)
                self.num_events += 1
                try:
                    before = harness.num_natural_preemptions
                    apply(harness, event)
                    self.num_natural_preemptions += harness.num_natural_preemptions - before
                except BREAKS as error:
                    self.violation = f"{' '.join(trace(parents, state, event))}: {type(error).__name__} {error}"
                    return
                forced = num_forced + (event[0] == "preempt")
                key = digest(forced, harness)
                if key in seen:
                    continue
                seen.add(key)
                parents.append((state, event))
                frontier.append((len(parents) - 1, forced, freeze(harness)))
                self.num_states = len(parents)
                if self.num_states % DRAIN_EVERY == 0:
                    self._drain(harness, parents)
                if self.violation is not None or self.num_states >= self.max_states:
                    return
        self.complete = True

    def _drain(self, harness: Harness, parents: list[tuple[int, Event]]) -> None:
        try:
            harness.drain()
        except BREAKS as error:
            steps = trace(parents, len(parents) - 1, ("drain", ""))
            self.violation = f"{' '.join(steps)}: {type(error).__name__} {error}"


def events(harness: Harness, may_force: bool) -> Iterator[Event]:
    live = {id for id, _ in harness.owed}
    running = {s.request.id for s in harness.running()}
    yield from (("add", id) for id in REQUESTS if id not in harness.requests)
    yield from (("abort", id) for id in REQUESTS if id in live)
    yield from (("preempt", id) for id in REQUESTS if may_force and id in running)
    if harness.batch is None:
        yield ("schedule", "")
        return
    yield ("commit", "")
    if harness.batch.unattended and harness.ahead is None:
        yield ("schedule_ahead", "")
    yield from (("fail", s.request.id) for s in harness.running() if s.seq_id in scheduled_ids(harness))


def scheduled_ids(harness: Harness) -> set[int]:
    return {s.seq_id for s in harness.batch.scheduled} if harness.batch is not None else set()


def apply(harness: Harness, event: Event) -> None:
    kind, id = event
    if kind == "add":
        harness.add(REQUESTS[id])
    elif kind == "fail":
        harness.commit({s.seq_id for s in harness.running() if s.request.id == id})
    elif id:
        getattr(harness, kind)(id)
    else:
        getattr(harness, kind)()


def trace(parents: list[tuple[int, Event]], state: int, event: Event) -> list[str]:
    steps = [event]
    while state > 0:
        state, previous = parents[state]
        steps.append(previous)
    return [f"{kind}({id})" for kind, id in reversed(steps)]


def digest(num_forced: int, harness: Harness) -> bytes:
    """16 bytes for a state; marshal version 2 writes equal values equally."""
    return hashlib.blake2b(marshal.dumps((num_forced, canonical(harness)), 2), digest_size=16).digest()


def canonical(harness: Harness) -> Hashable:
    """The state without names: blocks, sequences and prefixes are numbered in the order in which this function meets them."""
    scheduler = harness.scheduler
    by_id = {s.seq_id: s for siblings in scheduler._requests.values() for s in siblings.values()}
    blocks: dict[int, int] = {}
    prefixes: dict[object, int] = {}
    for block_id in itertools.chain(*(s.block_ids for s in harness.running()), scheduler.pool._free):
        blocks.setdefault(block_id, len(blocks))

    def label(seq_id: int) -> str:
        return by_id[seq_id].request.id if seq_id in by_id else "gone"

    def prefix(parent: object) -> object:
        return prefixes.setdefault(parent, len(prefixes)) if isinstance(parent, int) else parent

    sequences = [
        (
            s.request.id, s.status.value, len(s.token_ids), s.num_computed_tokens, s.num_confirmed_tokens, tuple(blocks[b] for b in s.block_ids),
            min(s.num_preemptions, MAX_PREEMPTIONS), s.num_cached_tokens, s.prefix.num_blocks, prefix(s.prefix.parent),
        )
        for s in sorted(by_id.values(), key=lambda s: s.seq_id)
    ]  # fmt: skip
    cached = []
    for block_id, number in blocks.items():
        entry = scheduler.kv.cache._by_block.get(block_id) if scheduler.kv.cache is not None else None
        if entry is not None:
            cached.append((number, entry.key[1], prefix(entry.key[0]), prefix(entry.prefix_id)))

    def content(batch: Batch | None) -> Hashable:
        return batch and (
            batch.decode_steps,
            batch.follows,
            *((label(s.seq_id), s.num_new_tokens) for s in batch.scheduled),
        )

    return (
        tuple(sequences), tuple(cached), tuple(sorted(harness.ended.items())), tuple(map(label, scheduler._running)),
        scheduler.pool.num_free, tuple(sorted(map(label, scheduler._removed))),
        scheduler._stuck and (label(scheduler._stuck[0]), scheduler._stuck[1]), scheduler._prompt_goes_alone,
        content(harness.batch), content(harness.ahead),
    )  # fmt: skip


def scope(max_forced: int, max_states: int = 2_000_000, **options: object) -> Model:
    """A model of four usable blocks of two tokens; `options` are those of SchedulerConfig."""
    fields = {"num_blocks": 5, "block_size": 2, "max_num_seqs": 3, "max_model_len": 9, **options}
    return Model(SchedulerConfig(**fields), max_forced, max_states)  # type: ignore[arg-type]


SCOPES: tuple[dict[str, object], ...] = (
    {"max_num_batched_tokens": 1},
    {"max_num_batched_tokens": 2},
    {"max_num_batched_tokens": 2, "policy": "priority"},
    {"max_num_batched_tokens": 3, "enable_prefix_caching": False},
    {"max_num_batched_tokens": 3, "enable_chunked_prefill": False, "max_num_seqs": 2},
    {"max_num_batched_tokens": 3, "max_decode_steps": 2, "decode_sizes": (1, 3)},
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-states", type=int, default=2_000_000)
    parser.add_argument("--forced", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for changes in SCOPES:
        model = scope(options.forced, options.max_states, **changes)
        began = time.monotonic()
        model.explore()
        failed |= model.violation is not None
        print(f"{changes}: {model.summary()}, {time.monotonic() - began:.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
