"""Several decoding steps in one batch, and batches asked for before the last one's tokens are known."""

import pytest
from stub_runner import Harness, request, solo

from quire.core.batch import Batch, SequenceResult, StepResult
from quire.core.scheduler import SchedulerConfig


def harness(**changes) -> Harness:
    fields = {
        "num_blocks": 33,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "max_model_len": 100,
        **changes,
    }
    return Harness(SchedulerConfig(**{"max_decode_steps": 4, "decode_sizes": (1, 2, 6, 8), **fields}))


def greedy(name: str, prompt: list[int], **params):
    return request(name, prompt, temperature=0.0, **params)


def rows(batch: Batch | None) -> list[tuple[int, int]] | None:
    return None if batch is None else [(row.seq_id, row.num_new_tokens) for row in batch.scheduled]


def decoding(h: Harness, names: str = "a", **params) -> Harness:
    for name in names:
        h.add(greedy(name, [ord(name)] * 3, **{"max_tokens": 30, **params}))
    h.step()
    h.schedule()
    return h


def test_a_step_of_nothing_but_decoding_becomes_several() -> None:
    h = decoding(harness(), "ab")
    assert (rows(h.batch), h.batch.decode_steps, h.batch.follows) == ([(0, 4), (1, 4)], 4, False)
    outputs = h.commit()
    assert [o.token_ids for o in outputs] == [solo(h.requests[name], 0, 100)[0][1:5] for name in "ab"]


def test_blocks_for_all_steps_come_with_the_batch() -> None:
    h = decoding(harness())  # 4 tokens known, 3 computed: the next three begin a block
    assert [len(row.new_block_ids) for row in h.batch.scheduled] == [1]
    h.schedule_ahead()
    assert [len(row.new_block_ids) for row in h.ahead.scheduled] == [1]
    h.drain()


def test_a_runner_that_cannot_gets_single_steps() -> None:
    h = decoding(harness(max_decode_steps=0))
    assert (rows(h.batch), h.batch.decode_steps) == ([(0, 1)], 0)
    h.schedule_ahead()
    assert h.ahead is None


@pytest.mark.parametrize(
    "params",
    [{"min_tokens": 2}, {"logit_bias": {1: 2.0}}, {"allowed_token_ids": [1]}, {"logprobs": -1}, {"logprobs": 33}],
)
def test_a_sequence_that_needs_the_host_keeps_all_to_single_steps(params) -> None:
    h = harness()
    h.add(greedy("a", [1] * 3))
    h.add(request("b", [2] * 3, **{"temperature": 0.0, **params}))
    h.step()
    h.schedule()
    assert (rows(h.batch), h.batch.decode_steps) == ([(0, 1), (1, 1)], 0)


@pytest.mark.parametrize(
    "params",
    [{"temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"logprobs": 5}, {"repetition_penalty": 1.1}],
)
def test_filters_penalties_and_a_few_logprobs_need_no_host(params) -> None:
    h = harness()
    h.add(request("a", [1] * 3, **{"temperature": 0.0, "max_tokens": 9, **params}))
    h.step()
    h.schedule()
    assert (rows(h.batch), h.batch.decode_steps) == ([(0, 4)], 4)
    h.drain()


def test_prompts_and_their_last_chunks_are_computed_in_single_steps() -> None:
    h = harness()
    h.add(greedy("a", [1] * 20, max_tokens=9))
    found = []
    for _ in range(3):
        h.schedule()
        found.append((rows(h.batch), h.batch.decode_steps))
        h.commit()
    assert found == [([(0, 16)], 0), ([(0, 4)], 0), ([(0, 4)], 4)]


def test_no_more_steps_than_tokens_may_come() -> None:
    h = harness()
    h.add(greedy("a", [1] * 3, max_tokens=3))
    h.add(greedy("b", [2] * 3, max_tokens=30))
    h.step()
    h.schedule()
    assert (rows(h.batch), h.batch.decode_steps) == ([(0, 2), (1, 4)], 4)
    h.drain()
    h = harness()
    h.add(greedy("a", [1] * 3, max_tokens=7))
    h.step()
    h.schedule()
    h.schedule_ahead()
    assert (rows(h.batch), rows(h.ahead), h.ahead.decode_steps) == ([(0, 4)], [(0, 2)], 2)


def test_steps_follow_before_the_tokens_are_known() -> None:
    h = decoding(harness(), "ab")
    h.schedule_ahead()
    assert (rows(h.ahead), h.ahead.decode_steps, h.ahead.follows) == ([(0, 4), (1, 4)], 4, True)
    h.commit()
    h.schedule_ahead()
    assert rows(h.ahead) == [(0, 4), (1, 4)]
    assert h.scheduler.schedule_ahead() is None  # two batches are under way, no more
    h.drain()


def test_a_sequence_that_stops_amid_the_steps_is_cut_and_its_later_steps_are_dropped() -> None:
    h = harness()
    tokens = solo(greedy("a", [3] * 3, max_tokens=30), 0, 100)[0]
    h.add(greedy("a", [3] * 3, max_tokens=30, stop_token_ids=[tokens[2]]))
    h.step()
    h.schedule()
    h.schedule_ahead()
    (output,) = h.commit()
    assert output.finish_reason == "stop" and output.token_ids == tokens[1:3]
    assert h.scheduler.pool.num_free == 32
    assert h.commit() == [] and h.batch is None


@pytest.mark.parametrize("how", ["abort", "preempt"])
def test_what_is_under_way_for_one_that_left_is_dropped(how: str) -> None:
    h = decoding(harness(max_num_batched_tokens=64), "abcdefgh")
    h.schedule_ahead()
    getattr(h, how)("a")
    assert {o.request_id for o in h.commit()} == set("bcdefgh")
    if how == "abort":  # else it waits to be admitted, which comes first
        h.schedule_ahead()
        assert rows(h.ahead)[0] == (0, 0)
    h.drain()


def test_a_newcomer_joins_in_the_step_after_the_one_under_way() -> None:
    h = decoding(harness())
    h.add(greedy("new", [2] * 3, max_tokens=9))
    h.schedule_ahead()
    assert rows(h.ahead) == [(0, 1), (1, 3)] and (h.ahead.decode_steps, h.ahead.follows) == (0, False)
    h.commit()
    h.schedule_ahead()
    assert (rows(h.ahead), h.ahead.decode_steps, h.ahead.follows) == ([(0, 4), (1, 4)], 4, False)
    h.drain()


def test_chunks_are_short_while_others_decode() -> None:
    h = harness(max_num_tokens_with_decoding=6, max_num_seqs=3)
    h.add(greedy("a", [1] * 16, max_tokens=3))
    h.add(greedy("b", [2] * 22, max_tokens=9))
    found = []
    h.schedule()
    while h.batch is not None and len(found) < 5:
        found.append(rows(h.batch))
        h.schedule_ahead()
        h.commit()
    assert found == [[(0, 16)], [(0, 1), (1, 5)], [(0, 1), (1, 5)], [(1, 12)], [(1, 4)]]
    h.drain()


def test_prompts_go_on_however_many_decode() -> None:
    h = harness(max_num_tokens_with_decoding=4, max_num_seqs=8)
    for name in "abcde":
        h.add(greedy(name, [ord(name)] * 3, max_tokens=9))
    h.step()
    h.add(greedy("long", [3] * 4, max_tokens=1))
    h.schedule()
    assert rows(h.batch) == [(i, 1) for i in range(5)] + [(5, 1)]
    h.drain()


def test_prompts_are_computed_chunk_after_chunk_without_waiting() -> None:
    h = harness()
    h.add(greedy("a", [1] * 40, max_tokens=9))
    found = []
    h.schedule()
    while h.batch is not None:
        found.append((rows(h.batch), h.batch.decode_steps))
        h.schedule_ahead()
        h.commit()
    assert found == [([(0, 16)], 0), ([(0, 16)], 0), ([(0, 8)], 0), ([(0, 4)], 4), ([(0, 4)], 4)]


@pytest.mark.parametrize("params", [{"logprobs": -1}, {"prompt_logprobs": 1}])
def test_who_needs_the_host_is_not_admitted_before_the_tokens_are_known(params) -> None:
    h = decoding(harness())
    h.add(request("b", [2] * 3, **{"temperature": 0.0, **params}))
    h.schedule_ahead()
    assert h.ahead is None
    h.commit()
    h.schedule()
    assert rows(h.batch) == [(0, 1), (1, 3)] and not h.batch.unattended
    h.drain()


def test_one_preempted_from_a_step_under_way_comes_back_after_it() -> None:
    h = decoding(harness(), "ab")
    h.preempt("a")
    h.schedule_ahead()
    assert h.ahead is None
    h.commit()
    h.schedule()
    assert rows(h.batch)[-1][0] == 0
    h.drain()


def test_what_a_step_under_way_computes_is_not_found_before_it_is_committed() -> None:
    h = harness(max_num_batched_tokens=8)
    h.add(greedy("a", [1] * 8, max_tokens=9))
    h.schedule()
    h.add(greedy("b", [1] * 8 + [2], max_tokens=9))
    h.schedule_ahead()
    assert (rows(h.ahead), h.ahead.decode_steps) == ([(0, 1)], 1)  # one step: b joins the next
    h.commit()
    h.schedule_ahead()
    assert rows(h.ahead) == [(0, 1), (1, 1)]
    h.drain()


def test_who_waits_for_want_of_blocks_stops_nobody() -> None:
    h = harness(num_blocks=10)
    h.add(greedy("a", [1] * 3, max_tokens=20))
    h.step()
    h.add(greedy("large", [2] * 33, max_tokens=1))
    h.schedule()
    h.schedule_ahead()
    assert (rows(h.batch), rows(h.ahead)) == ([(0, 4)], [(0, 4)])
    h.drain()


def test_when_so_many_rows_have_ended_that_a_smaller_batch_serves_the_others_go_on_without_them() -> None:
    h = decoding(harness(max_num_batched_tokens=64, decode_sizes=(1, 6, 9)), "abcdefgh")
    h.abort("a")
    h.schedule_ahead()
    assert (rows(h.ahead), h.ahead.follows) == ([(0, 0), *((i, 4) for i in range(1, 8))], True)
    h.commit()
    h.abort("b")
    h.schedule_ahead()
    assert (rows(h.ahead), h.ahead.follows) == ([(i, 4) for i in range(2, 8)], False)
    h.drain()


def test_without_blocks_for_several_steps_there_is_one() -> None:
    h = harness(num_blocks=4, block_size=1, max_model_len=4)
    h.add(greedy("a", [1], max_tokens=3))
    h.add(greedy("b", [2], max_tokens=3))
    h.step()
    h.schedule()
    assert h.batch.decode_steps == 0  # b had to go
    h.drain()
    h = harness(num_blocks=6, block_size=1, max_model_len=6)
    h.add(greedy("a", [1], max_tokens=5))
    h.add(greedy("b", [2], max_tokens=5))
    h.step()
    h.schedule()
    assert (rows(h.batch), h.batch.decode_steps) == ([(0, 1), (1, 1)], 1)
    h.schedule_ahead()
    assert h.ahead is None
    h.drain()


def test_a_sequence_that_fails_fails_alone() -> None:
    h = decoding(harness(), "ab")
    h.schedule_ahead()
    h.commit({0})
    h.drain()
    assert h.ended == {("a", 0): "error", ("b", 0): "length"}


def test_all_batches_under_way_are_abandoned_together_and_nothing_is_lost() -> None:
    for executed in (False, True):
        h = decoding(harness(), "ab")
        h.schedule_ahead()
        with pytest.raises(RuntimeError, match="not the one under way"):
            h.scheduler.abandon(h.batch)  # the last comes first
        h.abandon(executed)
        h.scheduler.stop_lengthening()
        h.schedule()
        assert h.batch.decode_steps == 0
        h.drain()


def test_every_step_must_have_given_a_token() -> None:
    h = decoding(harness())
    with pytest.raises(RuntimeError, match="got 2 tokens in 4 steps"):
        h.scheduler.commit(h.batch, StepResult([SequenceResult(0, [1, 2])]))


def test_batches_are_committed_in_order() -> None:
    h = decoding(harness())
    h.schedule_ahead()
    with pytest.raises(RuntimeError, match="not the one under way"):
        h.scheduler.commit(h.ahead, StepResult([SequenceResult(0, [1, 2, 3, 4])]))
    with pytest.raises(RuntimeError, match="before commit"):
        h.scheduler.schedule()
