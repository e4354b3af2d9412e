"""Seeded random walks over the scheduler: the same promises as the state machine, without shrinking, some 30 times faster.

python tests/core/random_walks.py [--operations N] [--seed S]
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from stub_runner import Harness, config_of, replayed, request

from quire.core.scheduler import SchedulerConfig
from quire.errors import ClientError

NUM_OPERATIONS = 200


@dataclass(frozen=True)
class Profile:
    """What a walk is about. shares: max_tokens of requests, as parts of the model length."""

    block_size: tuple[int, int]
    num_usable: tuple[int, int]
    max_num_seqs: tuple[int, int]
    max_prompt: int
    shares: tuple[float, ...]
    add_weight: int


ANYTHING = Profile((1, 4), (2, 14), (1, 6), max_prompt=14, shares=(0.01, 0.3, 1.0), add_weight=10)
CROWDED = Profile((1, 2), (6, 24), (3, 8), max_prompt=6, shares=(0.3, 0.5, 1.0), add_weight=30)


class Walk:
    """One engine's life: random bounds, then random events, then a drain."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.profile = self.draw.choice((ANYTHING, CROWDED, CROWDED))
        self.greedy = self.draw.random() < 0.5
        self.harness = Harness(self._config())
        self.num_operations = 0
        self.events: list[tuple[int, Callable[[], None]]] = [
            (self.profile.add_weight, self.add), (1, self.abort), (1, self.abort_one), (2, self.preempt), (1, self.reset),
            (1, self.crash), (80, self.advance),
        ]  # fmt: skip

    def run(self) -> None:
        weights = [weight for weight, _ in self.events]
        for _, event in self.draw.choices(self.events, weights, k=NUM_OPERATIONS):
            event()
            self.num_operations += 1
        num_steps = self.harness.num_steps
        self.harness.drain()
        self.num_operations += self.harness.num_steps - num_steps

    def _config(self) -> SchedulerConfig:
        draw = self.draw
        return config_of(
            block_size=draw.randint(*self.profile.block_size),
            num_usable=draw.randint(*self.profile.num_usable),
            max_num_seqs=draw.randint(*self.profile.max_num_seqs),
            max_num_batched_tokens=draw.choice((1, 2, 3, 6, 12, 24)),
            max_model_len=draw.choice((10, 20, 1000)),
            excess=draw.choice((0, 0, 0, 3)),
            policy=draw.choice(("fcfs", "priority")),
            enable_prefix_caching=draw.random() < 0.8,
            enable_chunked_prefill=draw.random() < 0.7,
            max_num_queued_reqs=draw.choice((None, None, 2)),
            max_decode_steps=draw.choice((1, 2, 4)) if self.greedy else 0,
            decode_sizes=draw.choice(((), (4,), (1, 3, 6))),
        )

    def add(self) -> None:
        draw, params = self.draw, {}
        if draw.random() < 0.2:
            params["prompt_logprobs"] = 1
        greedy = self.greedy and draw.random() < 0.95
        if greedy:  # the runner may then do several steps in a row
            params["temperature"] = 0.0
        else:
            params["logprobs"] = draw.choice((None, None, None, 1))
            params["n"] = draw.choice((1, 1, 1, 2, 3))
        longest = self.harness.config.max_model_len
        num_varied = draw.randint(1, max(1, self.profile.max_prompt // 2))
        prompt = [0] * draw.randint(0, self.profile.max_prompt // 2) + [draw.randrange(2) for _ in range(num_varied)]
        max_tokens = max(1, int(longest * draw.choice(self.profile.shares)))
        if draw.random() < 0.8:
            max_tokens = max(1, min(max_tokens, longest - len(prompt)))
        new = request(
            f"r{len(self.harness.requests)}", prompt, salt=draw.choice("aaab"), priority=draw.randrange(3),
            eos=draw.choice(((), (), (1,), (2, 3))), ignore_eos=draw.random() < 0.5, max_tokens=max_tokens,
            min_tokens=0 if greedy else draw.choice((0, max_tokens // 2)),
            stop_token_ids=draw.choice(([], [], [4])), **params,
        )  # fmt: skip
        try:
            self.harness.add(new)
        except ClientError:
            self.harness.verify()

    def abort(self) -> None:
        self.harness.abort(self.draw.choice(self._ids()))

    def abort_one(self) -> None:
        self.harness.abort(self.draw.choice(self._ids()), self.draw.randrange(3))

    def preempt(self) -> None:
        self.harness.preempt(self.draw.choice(self._ids()))

    def reset(self) -> None:
        if self.harness.batch is None:
            self.harness.reset_prefix_cache()

    def crash(self) -> None:
        self.harness = replayed(self.harness)

    def advance(self) -> None:
        if self.harness.batch is None:
            self.harness.schedule()
        elif self.harness.ahead is None and self.draw.random() < 0.5:
            self.harness.schedule_ahead()
        elif self.draw.random() < 0.02:
            self.harness.abandon(executed=self.draw.random() < 0.5)
        elif self.draw.random() < 0.02 and self._all_still_run():
            self.harness.commit_retried()
        else:
            scheduled = [s.seq_id for s in self.harness.batch.scheduled]
            self.harness.commit({seq_id for seq_id in scheduled if self.draw.random() < 0.01})

    def _all_still_run(self) -> bool:
        batch = self.harness.batch
        alone = not batch.decode_steps and self.harness.ahead is None
        return alone and {s.seq_id for s in batch.scheduled} <= {s.seq_id for s in self.harness.running()}

    def _ids(self) -> list[str]:
        return sorted({id for id, _ in self.harness.owed}) or ["nobody"]


def walk(num_operations: int, seed: int) -> tuple[int, int, int]:
    """Walks until so many operations are done. Returns them, preemptions for want of blocks, sequences pinned by these."""
    done = preemptions = pinned = 0
    while done < num_operations:
        one = Walk(seed)
        try:
            one.run()
        except Exception as error:
            error.args = (f"walk with seed {seed}", *error.args)
            raise
        done += one.num_operations
        preemptions += one.harness.num_natural_preemptions
        pinned += one.harness.num_pinned
        seed += 1
    return done, preemptions, pinned


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    done, preemptions, pinned = walk(options.operations, options.seed)
    seconds = time.monotonic() - began
    print(f"{done} operations, {preemptions} preemptions, {pinned} pinned, 0 violations, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
