"""How a request's time divides, event by event."""

import random

import pytest

from quire.engine.times import Times


def test_an_undisturbed_request():
    times = Times(10.0)
    times.admitted(11.0, 1)
    times.came(13.0, 1)
    times.came(17.0, 1)
    assert times.parts(17.5, ended=True) == {
        "queue": 1, "prefill": 2, "decode": 4, "interrupted": 0, "recompute": 0, "stream": 0.5,
    }  # fmt: skip


def test_a_request_that_waits_and_one_that_prefills():
    times = Times(10.0)
    assert times.parts(12.0, ended=False)["queue"] == 2
    times.admitted(12.0, 1)
    parts = times.parts(15.0, ended=False)
    assert (parts["queue"], parts["prefill"], parts["decode"]) == (2, 3, 0)


def test_a_preemption_while_decoding():
    times = Times(0.0)
    times.admitted(1.0, 1)
    times.came(2.0, 1)
    times.came(3.0, 1)
    times.admitted(7.0, 1)  # it lost its blocks after 3.0 and came back
    times.came(9.0, 1)
    times.came(10.0, 1)
    assert times.interruptions == 1
    assert times.parts(10.0, ended=True) == {
        "queue": 1, "prefill": 1, "decode": 2, "interrupted": 4, "recompute": 2, "stream": 0,
    }  # fmt: skip


def test_a_preemption_before_the_first_token():
    times = Times(0.0)
    times.admitted(1.0, 1)
    times.admitted(4.0, 1)
    times.came(6.0, 1)
    parts = times.parts(6.0, ended=True)
    assert (parts["interrupted"], parts["recompute"], parts["prefill"], parts["decode"]) == (3, 2, 0, 0)


def test_sequences_that_are_admitted_one_by_one_are_no_interruptions():
    times = Times(0.0)
    for now in (1.0, 2.0, 3.0):
        times.admitted(now, 3)
    assert times.interruptions == 0 and times.started_s == 1.0


@pytest.mark.parametrize("seed", range(200))
def test_parts_always_sum_to_the_whole_and_none_is_negative(seed):
    rng = random.Random(seed)
    now = rng.random()
    times = Times(now)
    for _ in range(rng.randrange(12)):
        now += rng.random()
        if times.started_s is None or rng.random() < 0.3:
            times.admitted(now, 1)
        else:
            times.came(now, rng.randrange(3))
        for ended in (False, True):
            parts = times.parts(now + 0.5, ended)
            assert min(parts.values()) >= -1e-9
            assert sum(parts.values()) == pytest.approx(now + 0.5 - times.submitted_s)
