"""The outbox: what waits on a CPU, what must not, and that nothing is lost, doubled or reordered."""

import random
import threading
import time
from collections import defaultdict
from types import SimpleNamespace

import pytest

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.core.outputs import EngineOutput
from quire.engine import outbox
from quire.engine.outbox import Outbox, joined

LONG_S = 60.0


@pytest.fixture
def time_passes(monkeypatch):
    """The outbox's clock: nothing that waits leaves before this is set."""
    passes = threading.Event()
    monkeypatch.setattr(outbox, "time", SimpleNamespace(sleep=lambda seconds: passes.wait(LONG_S)))
    yield passes
    passes.set()


def wait_for_frames(sent: "Sent", number: int) -> None:
    end = time.monotonic() + LONG_S
    while len(sent.frames) < number and time.monotonic() < end:
        time.sleep(0.001)
    assert len(sent.frames) == number


class Sent:
    """What left: outputs and step counts of each sending."""

    def __init__(self) -> None:
        self.frames: list[list[EngineOutput]] = []
        self.steps: list[list[int]] = []

    def __call__(self, outputs: list[EngineOutput], step_tokens: list[int]) -> None:
        self.frames.append(outputs)
        self.steps.append(step_tokens)


def out(name: str, *tokens: int, end: str | None = None, index: int = 0) -> EngineOutput:
    return EngineOutput(name, index, list(tokens), finish_reason=end)


def test_without_holding_each_step_leaves_as_it_is():
    box = Outbox(sent := Sent())
    box.put([out("a", 1)], 5)
    box.put([], 7)
    assert (sent.frames, sent.steps) == ([[out("a", 1)], []], [[5], [7]])


def test_first_tokens_and_ends_leave_at_once_with_what_waited():
    box = Outbox(sent := Sent(), LONG_S, LONG_S)
    box.put([out("a", 1), out("b", 9)], 2)
    box.put([out("a", 2), out("b", 8)], 2)
    box.put([out("a", 3), out("c", 7)], 2)
    box.put([out("a", 4, end="stop")], 1)
    assert sent.frames == [[out("a", 1), out("b", 9)], [out("c", 7)], [out("a", 2, 3, 4, end="stop")]]
    assert sent.steps == [[2], [2, 2], [1]]
    box.close()


def test_an_end_without_a_token_brings_what_waited():
    box = Outbox(sent := Sent(), LONG_S, LONG_S)
    for output in (out("a", 1), out("a", 2), out("a", end="abort")):
        box.put([output], 1)
    assert sent.frames[-1] == [out("a", 2, end="abort")]
    box.close()


def test_log_probabilities_wait_with_their_tokens():
    entries = [TokenLogprobs([i], [-0.5], 1) for i in range(3)]
    box = Outbox(sent := Sent(), LONG_S, LONG_S)
    for i, end in enumerate((None, None, "length")):
        box.put([EngineOutput("a", 0, [i], LogprobColumns.of([entries[i]]), finish_reason=end)], 1)
    assert list(sent.frames[-1][0].logprobs) == entries[1:] and sent.frames[-1][0].token_ids == [1, 2]
    box.close()


def test_an_error_leaves_the_log_probabilities_of_the_tokens_before_it():
    told = LogprobColumns.of([TokenLogprobs([5], [-0.5], 1)])
    (both,) = joined([EngineOutput("a", 0, [5], told), out("a", end="error")])
    assert (both.token_ids, both.logprobs, both.finish_reason) == ([5], told, "error")


def test_what_nobody_waits_for_is_forgotten(time_passes):
    box = Outbox(sent := Sent(), LONG_S, LONG_S)
    box.put([out("a", 1), out("b", 1)], 2)
    box.put([out("a", 2), out("b", 2)], 2)
    box.forget("a", {0})
    time_passes.set()
    wait_for_frames(sent, 2)
    assert sent.frames[1:] == [[out("b", 2)]]
    box.close()


def test_what_waits_leaves_by_itself_though_no_step_follows():
    box = Outbox(sent := Sent(), LONG_S, 0.01)
    box.put([out("a", 1)], 1)
    box.put([out("a", 2)], 1)
    wait_for_frames(sent, 2)
    assert sent.frames[1] == [out("a", 2)]
    box.close()


def test_one_sequence_never_waits_and_many_do(time_passes):
    box = Outbox(sent := Sent(), 0.0005, LONG_S)
    for token in range(3):
        box.put([out("a", token)], 1)
    assert sent.frames == [[out("a", 0)], [out("a", 1)], [out("a", 2)]]
    box.put([out(str(i), 1) for i in range(400)], 20)
    box.put([out(str(i), 2) for i in range(400)], 20)
    assert len(sent.frames) == 4
    time_passes.set()
    wait_for_frames(sent, 5)
    assert len(sent.frames[4]) == 400
    box.close()


def test_nothing_leaves_a_closed_outbox(time_passes):
    box = Outbox(sent := Sent(), LONG_S, LONG_S)
    box.put([out("a", 1)], 1)
    box.put([out("a", 2)], 1)
    box.close()
    time_passes.set()
    box._thread.join(LONG_S)
    assert not box._thread.is_alive()
    box.put([out("b", 1)], 1)
    assert len(sent.frames) == 1


def test_every_token_arrives_once_and_in_order():
    """Random steps of many sequences against a thread that sends every millisecond."""
    rng = random.Random(3)
    box = Outbox(sent := Sent(), LONG_S, 0.002)
    left = {(f"r{i}", index): rng.randrange(1, 60) for i in range(20) for index in range(2)}
    wanted: dict[tuple[str, int], list[int]] = defaultdict(list)
    num_steps = 0
    while left:
        step = []
        for key in rng.sample(sorted(left), k=min(len(left), rng.randrange(1, 12))):
            tokens = [rng.randrange(1000) for _ in range(rng.randrange(1, 4))]
            wanted[key] += tokens
            left[key] -= 1
            step.append(out(key[0], *tokens, index=key[1], end="length" if not left[key] else None))
            if not left[key]:
                del left[key]
        box.put(step, len(step))
        num_steps += 1
        time.sleep(rng.choice((0, 0, 0.0005)))
    box.close()
    got: dict[tuple[str, int], list[int]] = defaultdict(list)
    for frame in sent.frames:
        assert len({(o.request_id, o.index) for o in frame}) == len(frame)
        for o in frame:
            got[o.request_id, o.index] += o.token_ids
    assert got == wanted and sum(map(len, sent.steps)) == num_steps


def test_joining_keeps_what_only_the_first_output_has():
    first = EngineOutput("a", 0, [1], prompt_logprobs=[TokenLogprobs([1], [0.0], 1)], num_cached_tokens=4)
    assert joined([first, out("b", 5), out("a", 2, end="stop")]) == [
        EngineOutput("a", 0, [1, 2], prompt_logprobs=first.prompt_logprobs, finish_reason="stop", num_cached_tokens=4),
        out("b", 5),
    ]
