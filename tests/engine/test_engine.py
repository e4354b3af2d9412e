"""The loop and its fault boundary, with a runner that has no model: a failure reaches its cause and nobody else."""

import gc
import logging
import random

import pytest
from fake_runner import VOCAB, FakePlatform, FakeRunner, expected
from tiny_checkpoints import tiny_qwen2

from quire.config import EngineConfig
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.engine import Engine
from quire.engine.throughput import ThroughputLog
from quire.errors import ContextLengthExceeded, EngineUnavailable, QueueFull

POISON = VOCAB + 1


def config_for(**changes):
    settings = {"max_model_len": 128, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32}
    return EngineConfig("dir", "name", "cpu", "float32", **{**settings, **changes})


def engine_for(num_blocks=64, fails=None, **changes):
    config = config_for(**changes)
    return Engine(config, FakeRunner(config, num_blocks, fails), FakePlatform(), log_stats=False)


def request(name, prompt, max_tokens=8, **params):
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, seed=7, **params))


def drain(engine, max_steps=5000):
    """Runs until all is done; returns {(id, index): (tokens, finish_reason, error)}."""
    tokens, ends = {}, {}
    for _ in range(max_steps):
        if not engine.has_work():
            return {key: (tokens.get(key, []), *ends[key]) for key in ends}
        for output in engine.step():
            key = (output.request_id, output.index)
            assert key not in ends, "an output after the end"
            tokens.setdefault(key, []).extend(output.token_ids)
            if output.finish_reason:
                ends[key] = (output.finish_reason, output.error)
        engine.scheduler.check()
    raise AssertionError("no end in sight")


def all_blocks_are_back(engine):
    engine.scheduler.check()
    return engine.scheduler.pool.num_free == engine.num_blocks and engine.stats().kv_cache_usage == 0


def raise_if(condition):
    def fails(rows):
        if any(condition(row) for row in rows):
            raise RuntimeError("kernel launch failed")

    return fails


def poisoned(row):
    return POISON in row.token_ids


@pytest.mark.parametrize("num_blocks", [40, 200])
def test_every_request_gets_its_own_tokens(num_blocks):
    engine = engine_for(num_blocks, max_model_len=64)
    rng = random.Random(1)
    requests = []
    for i in range(60):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 50))]
        n = rng.choice([1, 1, 3])
        requests.append(request(f"r{i}", prompt, rng.randrange(1, 14), n=n))
    for each in requests:
        engine.add(each)
    got = drain(engine)
    assert len(got) == sum(r.params.n for r in requests)
    for each in requests:
        for index in range(each.params.n):
            assert got[each.id, index] == (expected(each.prompt_token_ids, each.params, index), "length", None)
    assert all_blocks_are_back(engine)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("place", [0, -1])
def test_a_poison_request_fails_alone(num_rows, place):
    engine = engine_for(fails=raise_if(poisoned))
    requests = [request(f"r{i}", [i, i + 1, i + 2]) for i in range(num_rows)]
    requests[place].prompt_token_ids.append(POISON)
    for each in requests:
        engine.add(each)
    got = drain(engine)
    culprit = requests[place]
    for each in requests:
        tokens, reason, error = got[each.id, 0]
        if each is culprit:
            assert (tokens, reason) == ([], "error") and "kernel" not in error and error
        else:
            assert (tokens, reason, error) == (expected(each.prompt_token_ids, each.params), "length", None)
    assert all_blocks_are_back(engine)


@pytest.fixture
def usual_thresholds():
    """Those of a program that has set none; engines of other tests may be open still."""
    found = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield (700, 10, 10)
    gc.set_threshold(*found)


def test_what_is_there_after_loading_is_left_alone_by_the_garbage_collector(tmp_path, usual_thresholds):
    config = EngineConfig(
        str(tiny_qwen2(tmp_path)), "name", "cpu", "float32", max_model_len=128, block_size=4, max_num_seqs=8,
        max_num_batched_tokens=32, num_gpu_blocks_override=40,
    )  # fmt: skip
    engine, second = Engine.from_config(config, log_stats=False), Engine.from_config(config, log_stats=False)
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] > usual_thresholds[0]  # and it looks for what came since less often
    engine.close()
    second.close()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == usual_thresholds
    gc.set_threshold(900, 9, 9)
    engine.close()
    assert gc.get_threshold() == (900, 9, 9)  # what the program has set since is its own


def test_a_request_that_becomes_poison_while_it_generates_keeps_what_it_has():
    engine = engine_for(fails=raise_if(lambda row: row.seq_id == 2 and len(row.token_ids) > 8))
    requests = [request(f"r{i}", [i, 1, 2]) for i in range(6)]
    for each in requests:
        engine.add(each)
    got = drain(engine)
    tokens, reason, _ = got["r2", 0]
    assert (
        reason == "error" and 0 < len(tokens) < 8 and tokens == expected([2, 1, 2], requests[2].params)[: len(tokens)]
    )
    assert [got[f"r{i}", 0][0] for i in (0, 1, 3, 4, 5)] == [
        expected(requests[i].prompt_token_ids, requests[i].params) for i in (0, 1, 3, 4, 5)
    ]


def test_failures_during_chunks_preemption_and_sharing_change_nobodys_tokens():
    """Random failures that no row causes: after a retry everything is as if they had not been."""
    rng = random.Random(3)

    def fails(rows):
        if len(rows) > 1 and rng.random() < 0.3:
            raise RuntimeError("out of memory")

    engine = engine_for(num_blocks=24, fails=fails, max_num_batched_tokens=12, max_model_len=64)
    shared = [rng.randrange(VOCAB) for _ in range(20)]
    requests = [
        request(f"r{i}", shared[: rng.randrange(1, 20)] + [i], rng.randrange(1, 20), n=1 + i % 2) for i in range(30)
    ]
    for each in requests:
        engine.add(each)
    got = drain(engine)
    assert engine.stats().num_preemptions > 0
    for each in requests:
        for index in range(each.params.n):
            assert got[each.id, index] == (expected(each.prompt_token_ids, each.params, index), "length", None)
    assert all_blocks_are_back(engine)


def test_a_lost_device_is_the_engines_failure():
    engine = engine_for(fails=raise_if(poisoned))
    engine._executor._platform.lost = True
    engine.add(request("r", [1, POISON]))
    with pytest.raises(EngineUnavailable, match="device is lost"):
        engine.step()


def test_when_every_row_fails_step_after_step_it_is_not_the_rows():
    engine = engine_for(fails=raise_if(lambda row: True))
    for i in range(30):
        engine.add(request(f"r{i}", [i]))
    with pytest.raises(EngineUnavailable, match="3 steps in a row"):
        drain(engine)


def test_an_interrupted_step_loses_nothing():
    interrupts = iter([False, False, True, False, True])

    def fails(rows):
        if next(interrupts, False):
            raise KeyboardInterrupt

    engine = engine_for(fails=fails)
    requests = [request(f"r{i}", [i, 1, 2, 3, 4]) for i in range(5)]
    for each in requests:
        engine.add(each)
    tokens = {}
    for _ in range(200):
        try:
            for output in engine.step() if engine.has_work() else []:
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
        except KeyboardInterrupt:
            engine.scheduler.check()
    assert tokens == {each.id: expected(each.prompt_token_ids, each.params) for each in requests}
    assert next(interrupts, None) is None and all_blocks_are_back(engine)


def test_aborts_give_blocks_back_at_once():
    engine = engine_for()
    for i in range(6):
        engine.add(request(f"r{i}", [i] * 10, 50, n=2))
    engine.step()
    engine.step()
    engine.abort("r0")
    engine.abort("r1", 1)
    engine.abort("unknown")
    engine.abort("r0")
    got = drain(engine)
    assert set(got) == {(f"r{i}", j) for i in range(1, 6) for j in range(2)} - {("r1", 1)}
    assert all_blocks_are_back(engine)


def test_requests_that_cannot_be_served_are_refused_at_the_door():
    engine = engine_for(num_blocks=9, max_num_queued_reqs=1, max_num_seqs=1)
    with pytest.raises(ContextLengthExceeded):
        engine.add(request("long", [1] * 128))
    with pytest.raises(ContextLengthExceeded, match="KV"):
        engine.add(request("wide", [1] * 40))
    for i in range(2):
        engine.add(request(f"r{i}", [1]))
    with pytest.raises(QueueFull):
        engine.add(request("one too many", [1]))


def test_close_reaches_the_runner():
    engine = engine_for()
    engine.close()
    assert engine.runner.closed


def test_the_log_line_comes_every_ten_seconds_of_work(caplog):
    caplog.set_level(logging.INFO, "quire.engine.throughput")
    now = [0.0]
    engine = engine_for(max_num_batched_tokens=100)
    engine._throughput = ThroughputLog(lambda: now[0])
    for i in range(4):
        engine.add(request(f"r{i}", [i] * 20, 100))
    for _ in range(25):
        now[0] += 1.0
        engine.step()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0] == (
        "Avg prompt throughput: 8.0 tokens/s, Avg generation throughput: 4.0 tokens/s, Running: 4 reqs, Waiting: 0 reqs, "
        f"GPU KV cache usage: {100 * 4 * 8 / 63:.1f}%, Prefix cache hit rate: 0.0%"
    )
    assert lines[1].startswith("Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 4.0")
    for i in range(4):
        engine.abort(f"r{i}")
    now[0] += 3600.0
    engine.add(request("after a pause", [9] * 20, 100))
    for _ in range(2):
        now[0] += 6.0
        engine.step()
    assert len(caplog.records) == 3, "slow steps count as they are"
    assert caplog.records[2].getMessage().startswith(f"Avg prompt throughput: {20 / 12:.1f} tokens/s")
