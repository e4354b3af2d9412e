"""Property tests: random events over the scheduler, with every promise of stub_runner.Harness checked after each."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from random_walks import walk
from stub_runner import Harness, config_of, replayed, request

from quire.errors import ClientError

MIN_OPERATIONS = 20_000
OPERATIONS: Counter[str] = Counter()

configs = st.builds(
    config_of,
    block_size=st.integers(1, 4),
    num_usable=st.integers(2, 12),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(1, 12),
    max_model_len=st.sampled_from((1000, 10, 20)),
    excess=st.sampled_from((0, 0, 3)),
    max_decode_steps=st.sampled_from((0, 0, 2, 4)),
    decode_sizes=st.sampled_from(((), (4,), (1, 3, 6))),
    policy=st.sampled_from(("fcfs", "priority")),
    enable_prefix_caching=st.booleans(),
    enable_chunked_prefill=st.booleans(),
    max_num_queued_reqs=st.sampled_from((None, 2)),
)
prompts = st.builds(
    lambda zeros, rest: [0] * zeros + rest, st.integers(0, 6), st.lists(st.integers(0, 1), min_size=1, max_size=8)
)
params = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from((40, 4, 1)),
        "n": st.sampled_from((0, 1, 1, 2, 3)),
        "stop_token_ids": st.sampled_from(([], [4])),
        "prompt_logprobs": st.sampled_from((None, 1)),
        "logprobs": st.sampled_from((None, 1)),
        "priority": st.integers(0, 2),
        "salt": st.sampled_from(("a", "b")),
        "ignore_eos": st.booleans(),
        "eos": st.sampled_from(((), (1,), (2, 3))),
    }
)
picks = st.integers(0, 50)


class Machine(RuleBasedStateMachine):
    """Events come in any order; steps are split into schedule and commit so that the others fall between them."""

    @initialize(config=configs)
    def start(self, config) -> None:
        self.harness = Harness(config)

    @rule(prompt=prompts, params=params)
    def add(self, prompt, params) -> None:
        room = max(1, self.harness.config.max_model_len - len(prompt))
        params["max_tokens"] = min(params["max_tokens"], room)  # mostly as many as fit, for want of blocks
        if self.harness.config.max_decode_steps or not params["n"]:
            params |= {"n": 1, "temperature": 0.0, "logprobs": None}  # so that steps may run in a row
        try:
            self.harness.add(request(f"r{len(self.harness.requests)}", prompt, **params))
        except ClientError:
            self.harness.verify()

    @rule(pick=picks)
    def abort(self, pick) -> None:
        self.harness.abort(self._id(pick))

    @rule(pick=picks, index=st.integers(0, 3))
    def abort_one(self, pick, index) -> None:
        self.harness.abort(self._id(pick), index)

    @rule(pick=picks)
    def preempt(self, pick) -> None:
        self.harness.preempt(self._id(pick))

    @rule(num_steps=st.integers(1, 8))
    def steps(self, num_steps) -> None:
        while self.harness.batch is not None:
            self.harness.commit()
        for _ in range(num_steps):
            self.harness.step()
        OPERATIONS["step"] += num_steps - 1

    @precondition(lambda self: self.harness.batch is None)
    @rule()
    def schedule(self) -> None:
        self.harness.schedule()

    @precondition(lambda self: self.harness.batch is not None)
    @rule()
    def schedule_ahead(self) -> None:
        self.harness.schedule_ahead()

    @precondition(lambda self: self.harness.batch is not None)
    @rule(fails=st.sets(st.integers(0, 4), max_size=1))
    def commit(self, fails) -> None:
        scheduled = self.harness.batch.scheduled
        self.harness.commit({s.seq_id for number, s in enumerate(scheduled) if number in fails})

    @precondition(lambda self: self.harness.batch is not None)
    @rule(executed=st.booleans())
    def abandon(self, executed) -> None:
        self.harness.abandon(executed)

    @precondition(lambda self: self.harness.batch is None)
    @rule()
    def retry(self) -> None:
        self.harness.schedule()
        if self.harness.batch.decode_steps:  # these are not tried again but abandoned
            self.harness.abandon(executed=True)
        else:
            self.harness.commit_retried()

    @precondition(lambda self: self.harness.batch is None)
    @rule()
    def reset(self) -> None:
        self.harness.reset_prefix_cache()

    @rule()
    def crash(self) -> None:
        self.harness = replayed(self.harness)

    def check_invariants(self, *args) -> None:
        OPERATIONS["rule"] += 1
        super().check_invariants(*args)

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()

    def _id(self, pick: int) -> str:
        ids = sorted({id for id, _ in self.harness.owed})
        return ids[pick % len(ids)] if ids else "nobody"


def test_any_order_of_events_keeps_every_promise() -> None:
    OPERATIONS.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=320, stateful_step_count=60, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(f"\n{OPERATIONS.total()} operations: {dict(OPERATIONS)}")
    assert OPERATIONS.total() >= MIN_OPERATIONS


def test_random_walks_keep_every_promise() -> None:
    done, preemptions, pinned = walk(40_000, seed=0)
    print(f"\n{done} operations, {preemptions} preemptions for want of blocks, {pinned} sequences pinned by these")
    assert preemptions > 500 and pinned > 5


@pytest.mark.parametrize("seed", [4284, 100118])
def test_a_head_that_does_not_fit_is_not_taken_for_one_that_lets_others_pass(seed: int) -> None:
    """Its prompt goes on with what a step computes for another, but will not be found there: false alarms of the walk's own checks once."""
    done, _, _ = walk(200, seed)
    assert done >= 200
