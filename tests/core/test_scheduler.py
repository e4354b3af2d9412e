"""Scheduler behaviours one by one. Every step also passes all checks of stub_runner.Harness."""

import pytest
from stub_runner import Harness, fingerprints, next_token, request, solo

from quire.core.batch import Batch, SequenceResult, StepResult
from quire.core.scheduler import MAX_PREEMPTIONS, SchedulerConfig
from quire.errors import ConfigError, ContextLengthExceeded, InvalidRequest, QueueFull


def harness(**changes) -> Harness:
    fields = {
        "num_blocks": 33,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "max_model_len": 100,
        **changes,
    }
    return Harness(SchedulerConfig(**fields))


def rows(batch: Batch) -> list[tuple[int, int]]:
    return [(row.seq_id, row.num_new_tokens) for row in batch.scheduled]


def step(h: Harness) -> list[tuple[int, int]]:
    """Does a step; returns (seq_id, num_new_tokens) of its rows."""
    h.schedule()
    scheduled = rows(h.batch)
    h.commit()
    return scheduled


def steps(h: Harness, num_steps: int) -> list[list[tuple[int, int]]]:
    return [step(h) for _ in range(num_steps)]


# ---- the budget ----


def test_a_prompt_is_computed_whole_and_then_one_token_a_step() -> None:
    h = harness()
    h.add(request("r", [1] * 10, max_tokens=3))
    assert steps(h, 4) == [[(0, 10)], [(0, 1)], [(0, 1)], []]
    assert h.ended == {("r", 0): "length"}


def test_a_long_prompt_is_computed_in_chunks_and_samples_after_the_last() -> None:
    h = harness()
    h.add(request("r", [1] * 40, max_tokens=2))
    outputs = [h.step() for _ in range(4)]
    assert [len(o) for o in outputs] == [0, 0, 1, 1]
    assert outputs[2][0].token_ids == solo(h.requests["r"], 0, 100)[0][:1]


def test_running_decodes_come_before_chunks_and_chunks_before_new_prompts() -> None:
    h = harness()
    h.add(request("decoding", [1] * 4, max_tokens=20))
    step(h)
    h.add(request("long", [2] * 40))
    h.add(request("short", [3] * 4))
    assert steps(h, 4) == [[(0, 1), (1, 15)], [(0, 1), (1, 15)], [(0, 1), (1, 10), (2, 4)], [(0, 1), (1, 1), (2, 1)]]


def test_new_requests_join_running_ones() -> None:
    h = harness()
    h.add(request("a", [1] * 3))
    step(h)
    h.add(request("b", [2] * 5))
    assert step(h) == [(0, 1), (1, 5)]


def test_no_more_sequences_than_allowed() -> None:
    h = harness(max_num_seqs=2)
    for name in "abc":
        h.add(request(name, [ord(name)] * 2, max_tokens=2))
    assert steps(h, 3) == [[(0, 2), (1, 2)], [(0, 1), (1, 1)], [(2, 2)]]


def test_without_chunked_prefill_a_prompt_that_does_not_fit_beside_others_goes_alone() -> None:
    h = harness(enable_chunked_prefill=False)
    h.add(request("decoding", [1] * 4, max_tokens=20))
    step(h)
    h.add(request("whole", [2] * 16))
    h.add(request("next", [3] * 12))
    assert steps(h, 5) == [
        [(0, 1)],
        [(1, 16)],
        [(0, 1), (1, 1), (2, 12)],
        [(0, 1), (1, 1), (2, 1)],
        [(0, 1), (1, 1), (2, 1)],
    ]


def test_without_chunked_prefill_a_stream_of_prompts_takes_at_most_every_other_step() -> None:
    h = harness(enable_chunked_prefill=False)
    h.add(request("decoding", [1] * 4, max_tokens=20))
    step(h)
    for number in range(5):
        h.add(request(f"r{number}", [number] * 16, max_tokens=1))
    assert [(0, 1) in scheduled for scheduled in steps(h, 8)] == [True, False] * 4


def test_without_chunked_prefill_what_outgrew_a_step_is_recomputed_in_parts() -> None:
    h = harness(enable_chunked_prefill=False, enable_prefix_caching=False)
    h.add(request("r", [1] * 14, max_tokens=10))
    steps(h, 6)
    h.preempt("r")
    assert steps(h, 3) == [[(0, 16)], [(0, 4)], [(0, 1)]]
    h.drain()


def test_a_batch_says_what_a_runner_needs_and_shares_no_list_with_the_scheduler() -> None:
    h = harness()
    r = request("r", [1] * 6, max_tokens=9)
    h.add(r)
    h.schedule()
    (new,) = h.batch.added
    assert (new.seq_id, new.index, list(new.token_ids), new.num_prompt_tokens, new.num_computed_tokens) == (
        0,
        0,
        [1] * 6,
        6,
        0,
    )
    assert new.params is r.params and len(new.block_ids) == 2
    assert h.batch.scheduled[0].new_block_ids == []  # all in new.block_ids
    sequence = h.running()[0]
    assert new.token_ids is not sequence.token_ids and new.block_ids is not sequence.block_ids
    h.commit()
    grown = []
    for _ in range(4):
        h.schedule()
        grown.append([len(row.new_block_ids) for row in h.batch.scheduled])
        h.commit()
    assert grown == [[0], [0], [1], [0]]  # tokens 6, 7, then 8 begins a block


# ---- prefix cache ----


def test_a_prompt_reuses_the_full_blocks_of_an_equal_beginning() -> None:
    h = harness()
    h.add(request("a", [1] * 9, max_tokens=1))
    step(h)
    h.add(request("b", [1] * 9 + [2] * 3, max_tokens=1))
    (output,) = h.step()
    assert output.num_cached_tokens == 8
    stats = h.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (21, 8)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    h = harness()
    for name in ("a", "b"):
        h.add(request(name, [1] * 8, max_tokens=1))
        h.schedule()
        last = rows(h.batch)
        h.commit()
    assert last == [(1, 4)]  # the second of two full blocks is computed again


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    h = harness()
    first = request("a", [1] * 4, max_tokens=9)
    h.add(first)
    h.drain()
    h.add(request("b", [1] * 4 + solo(first, 0, 100)[0] + [2], max_tokens=1))
    (output,) = h.step()
    assert output.num_cached_tokens == 12  # 4 + 9 tokens, the last of which was never computed


def test_other_salts_and_a_switched_off_cache_share_nothing() -> None:
    h = harness()
    h.add(request("a", [1] * 9, max_tokens=1, salt="x"))
    step(h)
    h.add(request("b", [1] * 9, max_tokens=1, salt="y"))
    assert h.step()[0].num_cached_tokens == 0
    h = harness(enable_prefix_caching=False)
    h.add(request("a", [1] * 9, max_tokens=1))
    step(h)
    h.add(request("b", [1] * 9, max_tokens=1))
    assert h.step()[0].num_cached_tokens == 0
    assert h.scheduler.stats().prefix_cache_queries == 0


def test_running_sequences_share_blocks_that_one_of_them_computed() -> None:
    h = harness()
    h.add(request("a", [1] * 9, max_tokens=20))
    step(h)
    h.add(request("b", [1] * 9 + [2], max_tokens=20))
    step(h)
    a, b = h.running()
    assert a.block_ids[:2] == b.block_ids[:2] and a.block_ids[2] != b.block_ids[2]


def test_a_reset_forgets_blocks_and_recomputes_what_runs() -> None:
    h = harness()
    h.add(request("a", [1] * 9, max_tokens=4))
    step(h)
    h.reset_prefix_cache()
    assert step(h) == [(0, 10)]
    h.add(request("b", [1] * 9, max_tokens=1))
    assert [o.num_cached_tokens for o in h.step()] == [0, 8]  # what was computed anew is found again
    h.drain()


def test_a_prompt_that_lacks_blocks_is_not_looked_up_again_until_there_is_more_room() -> None:
    h = harness(num_blocks=9)
    h.add(request("a", [1] * 9, max_tokens=12))
    h.add(request("b", [2] * 24, max_tokens=1))
    looked_up = []
    match = h.scheduler.kv.cache.match
    h.scheduler.kv.cache.match = lambda *args: looked_up.append(h.num_steps) or match(*args)
    h.drain()
    assert looked_up == [0, 0, 12]  # a; b in vain; b when a has ended


def test_a_prompt_that_lacks_blocks_comes_in_when_fewer_run_though_no_more_are_free() -> None:
    """Blocks stay free for the growth of those that run: of three, two; of two, one. That is as good as a free block."""
    h = harness(num_blocks=9)
    h.add(request("ends", [1] * 3, max_tokens=2))  # one block
    h.add(request("grows", [2] * 3, max_tokens=20))  # one, a second when "ends" has given up its own
    h.add(request("stays", [3] * 5, max_tokens=20))  # two
    step(h)
    h.add(request("waits", [4] * 12, max_tokens=1))  # three of the four that are free
    step(h)
    assert [s.request.id for s in h.waiting()] == ["waits"]
    free = h.scheduler.pool.num_free
    assert step(h) == [(1, 1), (2, 1), (3, 12)] and free == 5
    h.drain()


# ---- preemption ----


def two_that_outgrow_the_pool(**changes) -> Harness:
    h = harness(num_blocks=7, **changes)  # 24 tokens
    h.add(request("old", [1] * 7, max_tokens=14, priority=1))
    h.add(request("new", [2] * 7, max_tokens=14, priority=0))
    return h


def run_until_preemption(h: Harness) -> str:
    for _ in range(100):
        h.schedule()
        waiting = [s.request.id for s in h.waiting() if s.num_preemptions]
        if waiting:
            return waiting[0]
        h.commit()
    raise AssertionError("nobody was preempted")


def test_the_newest_is_preempted_when_blocks_run_out() -> None:
    h = two_that_outgrow_the_pool()
    assert run_until_preemption(h) == "new"
    assert h.batch.removed == [1] and [row.seq_id for row in h.batch.scheduled] == [0]
    h.drain()
    assert set(h.ended.values()) == {"length"}


def test_with_priorities_the_least_urgent_is_preempted() -> None:
    h = two_that_outgrow_the_pool(policy="priority")
    assert run_until_preemption(h) == "old"
    h.drain()


def test_a_victim_already_in_the_step_is_taken_out_of_it() -> None:
    """The urgent one comes later in the step than its victim, because it was admitted later."""
    h = harness(num_blocks=5, policy="priority")  # 16 tokens
    h.add(request("idle", [1] * 5, max_tokens=9, priority=1))
    step(h)
    h.add(request("urgent", [2] * 4, max_tokens=9, priority=0))
    assert run_until_preemption(h) == "idle"
    assert rows(h.batch) == [(1, 1)]
    assert h.scheduler.stats().num_step_tokens == 1
    h.drain()


def test_a_victim_amid_its_prompt_gets_nothing_in_that_step() -> None:
    h = harness(num_blocks=17, block_size=1, max_num_batched_tokens=2)  # 16 tokens
    h.add(request("old", [1] * 2, max_tokens=15))
    h.add(request("new", [2] * 12, max_tokens=1))
    assert run_until_preemption(h) == "new"
    assert len(h.runner.rows[1].token_ids) == 12 > h.runner.rows[1].num_computed
    assert rows(h.batch) == [(0, 1)]
    h.drain()


def test_a_preempted_sequence_comes_back_whole_and_before_newer_ones() -> None:
    h = two_that_outgrow_the_pool(enable_prefix_caching=False)
    run_until_preemption(h)
    h.commit()
    victim = h.waiting()[0]
    h.add(request("newer", [3] * 2))
    added = []
    while not added:
        h.schedule()
        added = h.batch.added
        h.commit()
    assert added[0].seq_id == 1 and added[0].num_computed_tokens == 0
    assert added[0].token_ids[:-1] == victim.token_ids[: len(added[0].token_ids) - 1]
    assert added[0].num_prompt_tokens == 7 and len(added[0].token_ids) > 7
    h.drain()


def test_a_preempted_sequence_finds_its_own_blocks_again_without_counting_as_a_hit() -> None:
    h = harness()
    h.add(request("r", [1] * 9, max_tokens=8))
    step(h)
    hits = h.scheduler.stats().prefix_cache_hits
    h.preempt("r")
    assert step(h) == [(0, 2)]
    assert h.scheduler.stats().prefix_cache_hits == hits
    assert h.running()[0].num_cached_tokens == 0
    assert h.scheduler.stats().num_preemptions == 1


def test_preempted_in_flight_its_results_are_dropped_and_come_again() -> None:
    h = harness()
    h.add(request("r", [1] * 5, max_tokens=3))
    h.schedule()
    h.preempt("r")
    assert h.commit() == []
    h.schedule()
    assert h.batch.removed == [0] and h.batch.added[0].seq_id == 0
    assert len(h.commit()) == 1
    h.drain()


def test_three_times_preempted_a_sequence_takes_all_it_can_need_and_is_never_a_victim() -> None:
    h = harness(num_blocks=9)  # 32 tokens
    h.add(request("old", [1] * 4, max_tokens=29))
    h.add(request("new", [2] * 4, max_tokens=17))
    for _ in range(MAX_PREEMPTIONS):
        step(h)
        h.preempt("new")
    step(h)
    new = next(s for s in h.running() if s.request.id == "new")
    assert len(new.block_ids) == 5  # for 4 + 17 - 1 tokens
    assert run_until_preemption(h) == "old"
    h.drain()


def test_nobody_is_admitted_who_would_take_the_next_block_of_a_running_sequence() -> None:
    h = harness(num_blocks=5)
    h.add(request("a", [1] * 7, max_tokens=5))
    step(h)
    h.add(request("b", [2] * 5, max_tokens=1))
    assert step(h) == [(0, 1)]  # two blocks are free, b needs two, one is left for a
    h.drain()
    assert h.scheduler.stats().num_preemptions == 0


# ---- order ----


def test_priority_orders_the_queue_and_arrival_breaks_ties() -> None:
    h = harness(policy="priority", max_num_seqs=1)
    for name, priority in (("a", 2), ("b", 0), ("c", 1), ("d", 0)):
        h.add(request(name, [1, 2], priority=priority, max_tokens=1))
    h.drain()
    assert [name for name, _ in h.ended] == ["b", "d", "c", "a"]


def test_arrival_orders_the_queue_whatever_the_priority() -> None:
    h = harness(max_num_seqs=1)
    for name, priority in (("a", 2), ("b", 0), ("c", 1)):
        h.add(request(name, [1, 2], priority=priority, max_tokens=1))
    h.drain()
    assert [name for name, _ in h.ended] == ["a", "b", "c"]


def test_a_small_prompt_does_not_overtake_a_large_one_that_lacks_blocks() -> None:
    h = harness(num_blocks=9)
    h.add(request("a", [1] * 8, max_tokens=6))
    h.add(request("large", [2] * 28, max_tokens=1))
    h.add(request("small", [3], max_tokens=1))
    h.drain()
    assert [name for name, _ in h.ended] == ["a", "large", "small"]


# ---- abort ----


def test_an_abort_frees_blocks_at_once_and_reaches_the_runner_with_the_next_batch() -> None:
    h = harness()
    h.add(request("r", [1] * 9))
    step(h)
    h.abort("r")
    assert h.scheduler.pool.num_free == h.scheduler.pool.num_usable
    assert not h.scheduler.has_work()
    h.schedule()
    assert (h.batch.scheduled, h.batch.removed) == ([], [0])
    assert h.commit() == [] and not h.runner.rows


def test_aborted_between_schedule_and_commit_a_result_is_dropped() -> None:
    h = harness()
    h.add(request("a", [1] * 5))
    h.add(request("b", [2] * 5))
    h.schedule()
    h.abort("a")
    assert [o.request_id for o in h.commit()] == ["b"]
    h.schedule()
    assert h.batch.removed == [0]


def test_aborted_while_waiting_it_never_reaches_the_runner() -> None:
    h = harness(max_num_seqs=1)
    h.add(request("a", [1] * 5, max_tokens=2))
    h.add(request("b", [2] * 5))
    step(h)
    h.abort("b")
    h.drain()
    assert h.scheduler._next_seq_id == 2 and h.ended["b", 0] == "abort"


def test_unknown_ended_and_repeated_aborts_are_ignored() -> None:
    h = harness()
    h.add(request("r", [1] * 5, max_tokens=1))
    step(h)
    for name in ("r", "r", "nobody"):
        h.abort(name)
        h.abort(name, 0)
    h.preempt("nobody")


def test_an_id_may_be_used_again_after_its_end() -> None:
    h = harness()
    for _ in range(2):
        h.add(request("r", [1] * 5, max_tokens=1))
        with pytest.raises(InvalidRequest, match="already here"):
            h.scheduler.add(request("r", [1]))
        h.drain()


def test_a_storm_of_aborts_leaves_no_litter_behind() -> None:
    h = harness(num_blocks=9)
    h.add(request("a", [1] * 20, max_tokens=9))
    step(h)
    for number in range(2000):
        h.scheduler.add(request(f"r{number}", [2] * 20))
        if number >= 10:
            h.scheduler.abort(f"r{number - 10}")
    assert len(h.scheduler._waiting) == 10
    assert len(h.scheduler._waiting._heap) < 50


# ---- n sequences of one request ----


def test_siblings_wait_for_the_prompt_and_share_its_blocks() -> None:
    h = harness()
    h.add(request("r", [1] * 25, n=3, max_tokens=4))
    assert step(h) == [(0, 16)]
    assert h.scheduler.stats().waiting == 2
    assert steps(h, 2) == [[(0, 9)], [(0, 1), (1, 1), (2, 1)]]
    assert len({tuple(s.block_ids[:6]) for s in h.running()}) == 1
    h.drain()
    assert set(h.ended) == {("r", 0), ("r", 1), ("r", 2)}


def test_without_a_prefix_cache_siblings_compute_the_prompt_themselves() -> None:
    h = harness(enable_prefix_caching=False)
    h.add(request("r", [1] * 5, n=3, max_tokens=4))
    assert step(h) == [(0, 5), (1, 5), (2, 5)]


@pytest.mark.parametrize("how", ["abort", "fail"])
def test_siblings_go_on_when_the_first_ends_before_the_prompt_is_computed(how: str) -> None:
    h = harness()
    h.add(request("r", [1] * 25, n=3, max_tokens=4))
    h.schedule()
    if how == "abort":
        h.abort("r", 0)
        h.commit()
    else:
        h.commit({0})
    assert {row[0] for row in step(h)} == {1}
    h.drain()
    assert [h.ended["r", index] for index in (1, 2)] == ["length", "length"]


def test_one_sibling_is_aborted_alone() -> None:
    h = harness()
    h.add(request("r", [1] * 5, n=3, max_tokens=4))
    h.abort("r", 1)  # still held back
    step(h)
    step(h)
    h.abort("r", 2)  # runs
    h.drain()
    assert h.ended == {("r", 1): "abort", ("r", 2): "abort", ("r", 0): "length"}


def test_all_siblings_are_aborted_together() -> None:
    h = harness()
    h.add(request("r", [1] * 25, n=3))
    step(h)
    h.abort("r")
    assert h.scheduler.stats().waiting == 0 and not h.scheduler.has_work()


# ---- replay ----


def test_a_replay_goes_on_after_the_tokens_that_were_emitted() -> None:
    h = harness()
    tokens = solo(request("r", [1] * 5, max_tokens=6), 0, 100)[0]
    h.add(request("r", [1] * 5, max_tokens=6, emitted=(tuple(tokens[:4]),)))
    h.schedule()
    assert list(h.batch.added[0].token_ids) == [1] * 5 + tokens[:4] and h.batch.added[0].num_prompt_tokens == 5
    (output,) = h.commit()
    assert output.token_ids == tokens[4:5]
    h.drain()


def test_of_a_replay_only_prompt_tokens_count_as_cached() -> None:
    h = harness()
    h.add(request("first", [1] * 5, max_tokens=14))
    h.drain()
    tokens = solo(h.requests["first"], 0, 100)[0]
    h.add(request("again", [1] * 5, max_tokens=14, emitted=(tuple(tokens[:12]),)))
    (output,) = h.step()
    assert output.num_cached_tokens == 5
    assert h.scheduler.stats().prefix_cache_hits == 16


def test_a_sequence_that_had_ended_is_not_run_again_and_its_siblings_are() -> None:
    h = harness()
    plain = request("r", [1] * 5, n=2, max_tokens=6)
    first, second = (solo(plain, index, 100)[0] for index in (0, 1))
    h.add(request("r", [1] * 5, n=2, max_tokens=6, emitted=(tuple(first), tuple(second[:1]))))
    h.drain()
    assert h.ended == {("r", 0): "replayed", ("r", 1): "length"}
    h.add(request("s", [1] * 5, n=2, max_tokens=6, emitted=(tuple(first), tuple(second))))
    assert not h.scheduler.has_work()


# ---- log-probabilities ----


def test_a_prompt_is_computed_once_for_all_that_begin_with_it() -> None:
    h = harness(max_num_batched_tokens=20)
    for name, own in (("a", 3), ("b", 4), ("c", 5)):
        h.add(request(name, [1] * 8 + [own] * 2, max_tokens=2))
    h.add(request("other", [2] * 6, max_tokens=2))
    assert step(h) == [(0, 10), (3, 6)]  # b and c let the one behind them pass
    assert step(h) == [(0, 1), (3, 1), (1, 2), (2, 2)]
    h.drain()
    assert [h.requests[name].id for name in "abc"] == ["a", "b", "c"] and set(h.ended.values()) == {"length"}


def test_a_long_prompt_is_followed_chunk_by_chunk() -> None:
    h = harness(max_num_batched_tokens=10)
    h.add(request("a", [1] * 24, max_tokens=2))
    h.add(request("b", [1] * 24 + [2], max_tokens=2))
    assert steps(h, 4) == [[(0, 10)], [(0, 10)], [(0, 4)], [(0, 1), (1, 1)]]
    h.drain()


def test_who_lets_others_pass_keeps_its_seat() -> None:
    h = harness(max_num_seqs=2)
    h.add(request("a", [1] * 8, max_tokens=40))
    h.add(request("b", [1] * 8, max_tokens=2))
    h.add(request("other", [2] * 6, max_tokens=40))
    assert steps(h, 2) == [[(0, 8)], [(0, 1), (1, 4)]]  # else b would wait until a or other has ended
    h.drain()


def test_nobody_waits_for_what_is_not_coming() -> None:
    h = harness(max_num_batched_tokens=10)
    h.add(request("a", [1] * 24, max_tokens=2))
    h.add(request("b", [1] * 24, max_tokens=2))
    h.schedule()
    h.abort("a")
    h.commit()
    assert step(h) == [(1, 10)]
    h.drain()


@pytest.mark.parametrize("options", [{"enable_prefix_caching": False}, {"block_size": 16}], ids=str)
def test_where_no_block_is_shared_nobody_waits(options: dict[str, int]) -> None:
    h = harness(**options)
    h.add(request("a", [1] * 7, max_tokens=2))
    h.add(request("b", [1] * 7, max_tokens=2))
    assert step(h) == [(0, 7), (1, 7)]
    h.drain()


def test_prompt_logprobs_are_collected_over_chunks_without_prefix_hits() -> None:
    h = harness()
    h.add(request("a", list(range(5)) * 8, max_tokens=1))
    h.drain()
    h.add(request("b", list(range(5)) * 8, max_tokens=2, prompt_logprobs=0))
    outputs = [h.step() for _ in range(4)]
    assert [len(o) for o in outputs] == [0, 0, 1, 1]
    assert len(outputs[2][0].prompt_logprobs) == 39 and outputs[3][0].prompt_logprobs is None
    assert outputs[2][0].num_cached_tokens == 0
    assert h.scheduler.stats().prefix_cache_queries == 40  # b did not ask


def test_preempted_amid_the_prompt_its_logprobs_start_anew() -> None:
    h = harness()
    h.add(request("r", [1] * 40, max_tokens=2, prompt_logprobs=0))
    step(h)
    h.preempt("r")
    assert step(h) == [(0, 16)]
    h.drain()  # the harness compares the entries


def test_a_runner_is_asked_for_prompt_logprobs_only_where_they_are_reported() -> None:
    h = harness()
    h.add(request("r", [1] * 5, n=2, max_tokens=6, prompt_logprobs=0))
    h.schedule()
    assert h.batch.added[0].params.prompt_logprobs == 0
    h.commit()
    h.schedule()
    assert h.batch.added[0].params.prompt_logprobs is None and h.batch.added[0].index == 1
    h.commit()
    h.preempt("r")
    h.schedule()
    assert [new.params.prompt_logprobs for new in h.batch.added] == [None, None]


# ---- failures and contracts ----


def test_a_sequence_fails_alone_and_leaves_nothing_in_the_prefix_cache() -> None:
    h = harness()
    h.add(request("good", [1] * 9, max_tokens=6))
    step(h)
    h.add(request("bad", [1] * 9 + [2], max_tokens=6))
    h.schedule()
    good, bad = h.commit({1})
    assert (bad.finish_reason, bad.error, bad.token_ids) == ("error", "logits are not finite", [])
    assert good.finish_reason is None
    h.drain()
    h.add(request("next", [1] * 9, max_tokens=1))
    assert h.step()[0].num_cached_tokens == 0  # not even what it shared: that may have been the cause


def test_what_failed_is_not_filed_again_by_another_that_shared_it() -> None:
    h = harness(max_num_batched_tokens=32)
    h.add(request("first", [1] * 9, max_tokens=20))
    step(h)
    h.add(request("bad", [1] * 9 + [2], max_tokens=6))
    h.add(request("good", [1] * 9 + [3] * 4, max_tokens=20))
    h.schedule()
    h.commit({1})  # in this very step the third files what it computed, after what it shares
    step(h)
    h.add(request("next", [1] * 9 + [3] * 4, max_tokens=1))
    assert [o.num_cached_tokens for o in h.step() if o.request_id == "next"] == [0]


def test_several_tokens_in_one_step_are_cut_at_the_stop_and_caught_up_with_otherwise() -> None:
    h = harness()
    s = h.scheduler
    s.add(request("r", [1] * 5, max_tokens=20, stop_token_ids=[7], logprobs=None))
    first = s.schedule()
    (output,) = s.commit(first, StepResult([SequenceResult(0, [3, 4, 5])]))
    assert output.token_ids == [3, 4, 5] and output.finish_reason is None
    batch = s.schedule()
    assert rows(batch) == [(0, 3)]
    s.check()
    (output,) = s.commit(batch, StepResult([SequenceResult(0, [6, 7, 8])]))
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([6, 7], "stop", 7)
    assert not s.has_work()


def test_who_got_several_tokens_may_need_the_blocks_of_another_who_did() -> None:
    s = harness(num_blocks=7, block_size=1).scheduler
    s.add(request("old", [1, 1], max_tokens=5))
    s.add(request("new", [2, 2], max_tokens=5))
    s.commit(s.schedule(), StepResult([SequenceResult(0, [3, 4, 5]), SequenceResult(1, [3, 4, 5])]))
    batch = s.schedule()
    assert (rows(batch), batch.removed) == ([(0, 3)], [1])
    s.check()


def test_a_lost_step_is_computed_again_and_nothing_is_lost() -> None:
    h = harness()
    h.add(request("gone", [3] * 5))
    step(h)
    h.abort("gone")
    h.add(request("r", [1] * 20, max_tokens=3))
    for executed in (False, True):
        h.schedule()
        h.abandon(executed)
    h.schedule()
    assert sorted(set(h.batch.removed)) == [0, 1]  # also what the lost batch was to tell
    h.commit()
    h.drain()


def test_abandon_is_for_the_batch_under_way() -> None:
    s = harness().scheduler
    with pytest.raises(RuntimeError, match="not the one under way"):
        s.abandon(Batch([]))


def test_rows_of_a_batch_can_be_computed_from_scratch_one_by_one() -> None:
    h = harness()
    h.add(request("a", [1] * 7, max_tokens=5))
    step(h)
    h.add(request("b", [2] * 30, max_tokens=5))
    h.schedule()
    decode, chunk = h.scheduler.rows_of(h.batch)
    assert (decode.num_computed_tokens, len(decode.token_ids)) == (7, 8)
    assert (chunk.num_computed_tokens, len(chunk.token_ids)) == (0, 30)
    h.commit_retried()
    h.drain()


def test_admitted_names_requests_that_leave_the_queue() -> None:
    h = harness()
    h.add(request("a", [1] * 5, n=2))
    h.add(request("b", [2] * 5))
    h.schedule()
    assert h.scheduler.admitted(h.batch) == ["a", "b"]
    h.commit()
    h.schedule()
    assert h.scheduler.admitted(h.batch) == ["a"]  # its second sequence


def test_results_that_do_not_belong_to_the_batch_are_refused() -> None:
    s = harness().scheduler
    s.add(request("r", [1] * 20))
    batch = s.schedule()
    with pytest.raises(RuntimeError, match="before commit"):
        s.schedule()
    with pytest.raises(RuntimeError, match="not the one under way"):
        s.commit(Batch([]), StepResult([]))
    with pytest.raises(RuntimeError, match="got 1 tokens"):
        s.commit(batch, StepResult([SequenceResult(0, [1])]))  # a chunk samples nothing
    batch = s.schedule()
    with pytest.raises(RuntimeError, match="result for sequence 9"):
        s.commit(batch, StepResult([SequenceResult(9, [1])]))


def test_a_result_without_the_token_that_was_due_is_refused() -> None:
    s = harness().scheduler
    s.add(request("r", [1] * 4))
    with pytest.raises(RuntimeError, match="got 0 tokens"):
        s.commit(s.schedule(), StepResult([SequenceResult(0, [])]))


def test_every_result_must_be_there() -> None:
    s = harness().scheduler
    s.add(request("r", [1] * 4))
    with pytest.raises(ValueError):
        s.commit(s.schedule(), StepResult([]))


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "prompt", "params", "error", "message"),
    [
        ({}, [], {}, InvalidRequest, "prompt is empty"),
        ({}, [1] * 100, {}, ContextLengthExceeded, "100 tokens.*model length of 100.*--max-model-len"),
        ({"num_blocks": 5}, [1] * 10, {"max_tokens": 8}, ContextLengthExceeded, "18 tokens.*5 KV blocks of 4.*has 4.*--gpu-mem"),
        ({"num_blocks": 5}, [1] * 10, {"max_tokens": 500}, ContextLengthExceeded, "100 tokens.*25 KV blocks"),
        ({"enable_chunked_prefill": False}, [1] * 17, {}, InvalidRequest, "17 tokens.*16.*--max-num-batched-tokens"),
        ({}, [1], {"emitted": ((1,), (2,))}, InvalidRequest, "2 sequences to replay, but n is 1"),
    ],
)  # fmt: skip
def test_what_can_never_be_served_is_refused_at_once(changes, prompt, params, error, message) -> None:
    s = harness(**changes).scheduler
    with pytest.raises(error, match=message):
        s.add(request("r", prompt, **params))
    assert not s.has_work()


def test_what_just_fits_is_served() -> None:
    h = harness(num_blocks=5)
    h.add(request("pool", [1] * 10, max_tokens=7))
    h.drain()
    h = harness()
    h.add(request("model", [1] * 99, max_tokens=50))
    h.drain()
    assert len(solo(h.requests["model"], 0, 100)[0]) == 1


def test_the_queue_has_a_limit_beyond_the_free_seats() -> None:
    h = harness(max_num_queued_reqs=1, max_num_seqs=2)
    for name in "abc":  # two seats are free and one may wait
        h.add(request(name, [1] * 3, n=2 if name == "a" else 1))
    with pytest.raises(QueueFull, match="--max-num-queued-reqs 1"):
        h.add(request("d", [1] * 3))
    h.abort("b")
    h.add(request("d", [1] * 3))
    step(h)
    with pytest.raises(QueueFull):
        h.add(request("e", [1] * 3))
    h.drain()


def test_the_queue_counts_requests_and_not_their_sequences() -> None:
    h = harness(max_num_queued_reqs=1, max_num_seqs=1, enable_prefix_caching=False)
    h.add(request("a", [1] * 3, n=3))
    h.add(request("b", [1] * 3))
    with pytest.raises(QueueFull, match="2 requests wait"):
        h.add(request("c", [1] * 3))


def test_a_limit_of_none_waiting_still_serves_an_idle_engine() -> None:
    h = harness(max_num_queued_reqs=0, max_num_seqs=1)
    h.add(request("a", [1] * 3))
    with pytest.raises(QueueFull):
        h.add(request("b", [1] * 3))
    h.drain()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "--block-size"), ({"max_num_seqs": 0}, "--max-num-seqs"), ({"max_model_len": 0}, "--max-model-len"),
        ({"max_num_batched_tokens": -1}, "--max-num-batched-tokens"), ({"num_blocks": 1}, "--num-gpu-blocks-override"),
        ({"policy": "lifo"}, "--scheduling-policy.*lifo"), ({"max_num_queued_reqs": -1}, "--max-num-queued-reqs"),
    ],
)  # fmt: skip
def test_impossible_bounds_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        harness(**changes)


def test_stats() -> None:
    h = harness(num_blocks=9)
    assert h.scheduler.stats().kv_cache_usage == 0.0
    h.add(request("a", [1] * 9, max_tokens=1))
    h.add(request("b", [2] * 9, max_tokens=2))
    h.schedule()
    stats = h.scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage, stats.num_step_tokens) == (2, 0, 0.75, 16)
    h.drain()
    stats = h.scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage, stats.num_preemptions) == (0, 0, 0.0, 0)


def test_the_stub_model_depends_on_every_token_and_on_the_index() -> None:
    """What makes the comparison with `solo` worth something."""
    base = fingerprints([1, 2, 3])[-1]
    others = {fingerprints(t)[-1] for t in ([0, 2, 3], [1, 0, 3], [1, 2, 0], [2, 1, 3], [1, 2, 3, 0], [1, 2])}
    assert base not in others and len(others) == 6
    assert len({next_token(base, index) for index in range(12)}) > 3
