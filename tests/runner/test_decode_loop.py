"""Decoding steps in a row, on a platform whose graphs run the captured work again: the same tokens as one step at a time."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording_platform import RecordingPlatform
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire.config import EngineConfig
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.engine import Engine
from quire.platform.cpu import CpuPlatform
from quire.runner.model_runner import ModelRunner, decode_steps

STOP = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("model"))


def engine_for(folder: Path, platform: CpuPlatform, **changes: Any) -> Engine:
    settings = {"max_model_len": 128, "block_size": 4, "max_num_seqs": 12, "max_num_batched_tokens": 64, **changes}
    settings.setdefault("num_gpu_blocks_override", 400)
    config = EngineConfig(str(folder), "test", "cpu", "float32", **settings)
    return Engine(config, ModelRunner.load(config, platform), platform, log_stats=False)


def requests(count: int, seed: int = 0) -> list[Request]:
    draw = random.Random(seed)
    stem = [draw.randrange(VOCAB_SIZE) for _ in range(60)]
    made = []
    for i in range(count):
        prompt = stem[: draw.randrange(60)] + [draw.randrange(VOCAB_SIZE) for _ in range(draw.randrange(1, 10))]
        params: dict[str, Any] = {"max_tokens": draw.randrange(1, 50), "temperature": 0.0, "seed": i}
        if i % 7 == 3:
            params |= draw.choice(
                ({"temperature": 1.0}, {"logprobs": 2}, {"frequency_penalty": 0.5}, {"n": 3, "temperature": 0.7})
            )
        stops = draw.sample(range(VOCAB_SIZE), 6) if i % 3 == 0 else []
        made.append(Request(f"r{i}", prompt, SamplingParams(**params, stop_token_ids=stops), (STOP,)))
    return made


def drain(engine: Engine, disturb: Callable[[Engine, int], None] = lambda engine, step: None) -> dict[Any, Any]:
    """{(id, index): [tokens, finish_reason, stop_reason]} of everything."""
    got: dict[Any, Any] = {}
    for step in range(5000):
        disturb(engine, step)
        if not engine.has_work():
            return got
        for output in engine.step():
            entry = got.setdefault((output.request_id, output.index), [[], None, None])
            assert entry[1] is None, "an output after the end"
            entry[0] += output.token_ids
            entry[1:] = [output.finish_reason, output.stop_reason]
        engine.scheduler.check()
    raise AssertionError("no end in sight")


def engine_with(asked: list[Request], folder: Path, platform: CpuPlatform, **changes: Any) -> Engine:
    engine = engine_for(folder, platform, **changes)
    for request in asked:
        engine.add(request)
    return engine


def answers(folder: Path, platform: CpuPlatform, asked: list[Request], **changes: Any) -> dict[Any, Any]:
    engine = engine_with(asked, folder, platform, **changes)
    got = drain(engine)
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.num_blocks
    engine.close()
    return got


@pytest.mark.parametrize(
    "changes", [{}, {"num_gpu_blocks_override": 60}, {"enforce_eager": True}, {"max_num_seqs": 1}], ids=str
)
def test_the_tokens_of_one_step_at_a_time(folder: Path, changes: dict[str, Any]) -> None:
    asked = requests(40)
    ahead = answers(folder, RecordingPlatform(), asked, **changes)
    assert ahead == answers(folder, CpuPlatform(), asked, **changes)
    assert {reason for _, reason, _ in ahead.values()} == {"stop", "length"}


def test_steps_do_overlap_and_rows_that_ended_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    start = ModelRunner.start
    monkeypatch.setattr(ModelRunner, "start", lambda self, batch: (batches.append(batch), start(self, batch))[1])
    asked = [
        Request(f"r{i}", [i, 5, 9], SamplingParams(temperature=0.0, max_tokens=10 if i == 5 else 40, ignore_eos=True))
        for i in range(12)
    ]
    answers(folder, RecordingPlatform(), asked)
    assert sum(batch.follows for batch in batches) >= 3
    assert any(row.num_new_tokens == 0 for batch in batches if batch.follows for row in batch.scheduled)
    assert max(batch.decode_steps for batch in batches) == 8


FULL = {
    "top_p": 0.9, "top_k": 20, "min_p": 0.01, "presence_penalty": 0.4, "frequency_penalty": 0.3, "repetition_penalty": 1.2,
}  # fmt: skip


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1.0}, {**FULL, "logprobs": 2}], ids=str)
def test_the_next_smaller_size_is_captured_before_it_is_needed(
    folder: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.runner.decode_loop.LEAST_AHEAD", 1)
    asked = [
        Request(f"r{i}", [i, 5], SamplingParams(**params, seed=i, max_tokens=20, ignore_eos=True)) for i in range(5)
    ]
    engine = engine_with(asked, folder, RecordingPlatform())
    got = drain(engine)
    assert engine.runner.loop is not None
    assert engine.runner.loop.captured_sizes == [
        (4, 4),
        (8, 8),
    ]  # five rows at every step, and soon there might be four
    engine.close()
    assert got == answers(folder, CpuPlatform(), asked)


def test_tokens_drawn_on_the_device_are_those_that_the_host_draws(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    start = ModelRunner.start
    monkeypatch.setattr(
        ModelRunner, "start", lambda self, batch: (start(self, batch), drawn.append(self.loop.manner.draws))[0]
    )
    asked = [
        Request(f"r{i}", [i, 5, 9], SamplingParams(temperature=i % 4 / 2, max_tokens=20 + i, seed=i, ignore_eos=True))
        for i in range(20)
    ]
    ahead = answers(folder, RecordingPlatform(), asked)
    assert drawn.count(True) > 5
    monkeypatch.undo()
    assert ahead == answers(folder, CpuPlatform(), asked)


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05}, {"presence_penalty": 0.7}, {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.3}, {"logprobs": 3}, FULL,
    ],
    ids=str,
)  # fmt: skip
def test_penalties_filters_and_logprobs_on_the_device_are_those_of_the_host(
    folder: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = []
    start = ModelRunner.start
    monkeypatch.setattr(
        ModelRunner, "start", lambda self, batch: (start(self, batch), filtered.append(self.loop.manner.filters))[0]
    )
    asked = [
        Request(
            f"r{i}",
            [i, 5, 9, i],
            SamplingParams(**{"temperature": i % 4 / 2, "max_tokens": 20 + i, "seed": i, "ignore_eos": True, **params}),
        )
        for i in range(20)
    ]
    ahead = answers(folder, RecordingPlatform(), asked)
    assert filtered.count(True) > 5
    monkeypatch.undo()
    assert ahead == answers(folder, CpuPlatform(), asked)


def test_all_smaller_sizes_are_captured_while_steps_take_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.runner.decode_loop.LEAST_AHEAD", 2)
    monkeypatch.setattr("quire.runner.decode_loop.MANY_ROWS", 12)
    asked = [
        Request(f"r{i}", [i, 5], SamplingParams(**FULL, seed=i, max_tokens=60, ignore_eos=True)) for i in range(12)
    ]
    engine = engine_with(asked, folder, RecordingPlatform())
    got = drain(engine)
    assert engine.runner.loop is not None
    assert engine.runner.loop.captured_sizes == [(2, 2), (4, 4), (8, 8), (12, 12)], "all rows end at once"
    engine.close()
    assert got == answers(folder, CpuPlatform(), asked)


@pytest.mark.parametrize("vocab_size", [5, 20])
def test_a_vocabulary_smaller_than_what_is_told_of_larger_ones(tmp_path: Path, vocab_size: int) -> None:
    folder = tiny_qwen2(tmp_path, vocab_size=vocab_size, eos_token_id=2)
    asked = [
        Request(f"r{i}", [i, 1], SamplingParams(max_tokens=9, seed=i, ignore_eos=True, logprobs=n))
        for i, n in enumerate((0, 3, 9, 32))
    ]
    ahead, plain = (logprobs_of(folder, platform, asked) for platform in (RecordingPlatform(), CpuPlatform()))
    for i, n in enumerate((0, 3, 9, 32)):
        assert [len(entry.token_ids) for entry in ahead[f"r{i}"]] == [1 + min(n, vocab_size)] * 9
        assert [e.token_ids for e in ahead[f"r{i}"]] == [e.token_ids for e in plain[f"r{i}"]]


def logprobs_of(folder: Path, platform: CpuPlatform, asked: list[Request]) -> dict[Any, list[Any]]:
    engine = engine_with(asked, folder, platform)
    got: dict[Any, list[Any]] = {}
    while engine.has_work():
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.logprobs or [None] * len(output.token_ids))
    engine.close()
    return got


def test_log_probabilities_told_by_the_device_are_those_of_the_host(folder: Path) -> None:
    asked = [
        Request(
            f"r{i}",
            [i, 5, 9],
            SamplingParams(**{**FULL, "temperature": i % 2, "max_tokens": 15, "seed": i, "logprobs": n}),
        )
        for i, n in enumerate((0, 5, None, 20, 1, 32, 8, None))
    ]
    ahead, plain = (logprobs_of(folder, platform, asked) for platform in (RecordingPlatform(), CpuPlatform()))
    assert {name: len(found) for name, found in ahead.items()} == {name: len(found) for name, found in plain.items()}
    for name, entries in plain.items():
        for a, b in zip(ahead[name], entries):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.token_ids, a.rank) == (b.token_ids, b.rank)
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_counts_are_right_when_steps_with_and_without_the_host_take_turns(folder: Path) -> None:
    asked = requests(30, seed=9)
    for i, request in enumerate(asked):
        request.params.repetition_penalty = (1.0, 1.3, 0.9)[i % 3]
        request.params.min_tokens = 2 if i % 5 == 4 else 0  # keeps all to steps with the host while it runs
    assert answers(folder, RecordingPlatform(), asked) == answers(folder, CpuPlatform(), asked)


def test_blocks_that_a_sequence_holds_beforehand_are_known_to_the_device(folder: Path) -> None:
    """A sequence that was preempted three times comes back with all blocks it can ever need."""
    asked = [Request("r0", [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True))]
    engine = engine_for(folder, RecordingPlatform())
    engine.add(asked[0])

    def preempt_thrice(engine: Engine, step: int) -> None:
        if step in (1, 3, 5):
            engine.scheduler.preempt("r0")

    assert drain(engine, preempt_thrice) == answers(folder, CpuPlatform(), asked)


def test_padding_rests_where_a_batch_before_had_more_rows(folder: Path) -> None:
    """So many steps that padding, if it went on, would come to the blocks of those rows; few blocks, so that others hold them by then."""
    engine = engine_for(folder, RecordingPlatform(), num_gpu_blocks_override=170)
    for i in range(8):
        params = SamplingParams(temperature=0.0, max_tokens=17, ignore_eos=True)
        engine.add(Request(f"long{i}", [i, 5, *[3] * 60], params))
    drain(engine)
    params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
    asked = [Request(f"r{i}", [i, 5, 9], params) for i in range(5)]
    for request in asked:
        engine.add(request)
    assert drain(engine) == answers(folder, CpuPlatform(), asked)


@pytest.fixture(params=range(4))
def disturbances(request: pytest.FixtureRequest) -> Iterator[Callable[[Engine, int], None]]:
    draw = random.Random(request.param)

    def disturb(engine: Engine, step: int) -> None:
        live = sorted(engine.scheduler._requests)
        if live and draw.random() < 0.3:
            engine.scheduler.preempt(draw.choice(live))
        if draw.random() < 0.02:
            engine.scheduler.reset_prefix_cache()

    return disturb


def test_preemption_at_any_moment_changes_nothing(folder: Path, disturbances: Callable[[Engine, int], None]) -> None:
    asked = requests(25, seed=3)
    engine = engine_with(asked, folder, RecordingPlatform())
    assert drain(engine, disturbances) == answers(folder, CpuPlatform(), asked)


def test_newcomers_and_leavers_between_steps(folder: Path) -> None:
    asked = requests(30, seed=5)
    draw = random.Random(5)
    engine = engine_for(folder, RecordingPlatform())
    waiting, gone = list(asked), set()

    def come_and_go(engine: Engine, step: int) -> None:
        if step % 11 == 10 and engine.scheduler._requests:
            gone.add(draw.choice(sorted(engine.scheduler._requests)))
            engine.abort(max(gone, key=lambda name: name in engine.scheduler._requests))
        if waiting and (step % 3 == 0 or not engine.has_work()):
            engine.add(waiting.pop())

    got = drain(engine, come_and_go)
    expected = answers(folder, CpuPlatform(), asked)
    whole = {key for key, (_, reason, _) in got.items() if reason is not None}
    assert len(whole) > 20
    assert all(got[key] == expected[key] for key in whole)
    assert all(expected[key][0][: len(tokens)] == tokens for key, (tokens, _, _) in got.items())


def test_a_sequence_whose_logits_are_not_finite_fails_alone(folder: Path) -> None:
    asked = [
        Request(f"r{i}", [i, 5, 9], SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)) for i in range(4)
    ]
    engine = engine_with(asked, folder, RecordingPlatform())
    expected = answers(folder, CpuPlatform(), asked)

    def poison(engine: Engine, step: int) -> None:
        if step == 2:  # the keys of the first token of r1
            victim = next(s for s in engine.scheduler._running.values() if s.request.id == "r1")
            for layer in engine.runner.kv_cache.layers:
                layer[:, victim.block_ids[0], 0] = float("nan")

    got = drain(engine, poison)
    assert got["r1", 0][1] == "error"
    assert all(got[f"r{i}", 0] == expected[f"r{i}", 0] for i in (0, 2, 3))


def test_after_a_failure_steps_run_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(10, seed=2)
    finish, calls = ModelRunner.finish, []

    def fail_once(self: ModelRunner, flight: Any, still_runs: Any) -> Any:
        calls.append(flight)
        if len(calls) == 2:
            raise RuntimeError("kernel launch failed")
        return finish(self, flight, still_runs)

    monkeypatch.setattr(ModelRunner, "finish", fail_once)
    assert answers(folder, RecordingPlatform(), asked) == answers(folder, CpuPlatform(), asked)
    assert len(calls) == 2


def test_after_an_interrupt_the_device_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are under way that read memory of the host, which the next ones write."""
    platform, waits = RecordingPlatform(), []
    engine = engine_for(folder, platform)
    asked = requests(10, seed=2)
    for request in asked:
        engine.add(request)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(platform, "synchronize", lambda: waits.append(len(engine.scheduler._in_flight)))
        with pytest.raises(KeyboardInterrupt):
            engine.step(interrupt)
    assert waits == [0]
    assert drain(engine) == answers(folder, CpuPlatform(), asked)


def test_small_models_run_further_ahead() -> None:
    assert [decode_steps(num_bytes) for num_bytes in (10**6, 10**9, 3 * 10**9, 14 * 10**9)] == [8, 8, 4, 1]
