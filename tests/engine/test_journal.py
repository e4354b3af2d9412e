"""The journal against a simulated engine that dies at any moment: every client gets exactly the undisturbed tokens."""

import random

import pytest
from fake_engine import FakeEngine, answer

from quire.core.outputs import EngineOutput
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.ipc import Abort, Submit
from quire.engine.journal import POISON_MEMORY_S, Journal
from quire.errors import RequestPoisoned


def request(name: str, max_tokens: int = 5, n: int = 1, prompt: tuple[int, ...] = (1, 2)) -> Request:
    params = SamplingParams(max_tokens=max_tokens, n=n, seed=7)
    return Request(name, [*prompt, *name.encode()], params)


class World:
    """A journal, an engine that can be killed, and clients that note what they get."""

    def __init__(self) -> None:
        self.now = 0.0
        self.journal = Journal(clock=lambda: self.now)
        self.got: dict[str, list[list[int]]] = {}
        self.requests: dict[str, Request] = {}
        self.failed: list[str] = []
        self.engine: FakeEngine | None = None
        self.max_together = 0

    def up(self) -> None:
        self.engine = FakeEngine(step_s=0)
        self.engine.on_admitted = self.journal.start
        self.journal.engine_up()
        self.flush()

    def down(self) -> None:
        self.engine = None
        self.failed += self.journal.engine_down()

    def add(self, r: Request) -> None:
        self.requests[r.id], self.got[r.id] = r, [[] for _ in range(r.params.n)]
        self.journal.add(r)
        self.flush()

    def flush(self) -> None:
        for message in self.journal.take_messages() if self.engine else []:
            if isinstance(message, Submit):
                self.engine.add(message.request)
            elif isinstance(message, Abort):
                for request_id, index in message.sequences:
                    self.engine.abort(request_id, index)

    def step(self, deadly: tuple[str, ...] = ()) -> None:
        """One step; the engine dies in it, before it can tell anything, when it computes a request named deadly."""
        live = self.engine.running()
        self.max_together = max(self.max_together, len(live))
        if any(r.split("~")[0] in deadly for r in live):
            self.journal.start(live)
            self.down()
            return
        for output in self.engine.step():
            told = self.journal.record(output)
            if told is not None:
                self.got[told.request_id][told.index] += told.token_ids
        self.flush()

    def finish(self, deadly: tuple[str, ...] = (), max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if self.engine is None:
                self.up()
            if not self.journal.entries:
                return
            self.step(deadly)
        raise AssertionError(f"not done: {list(self.journal.entries)}")

    def check(self) -> None:
        for request_id, r in self.requests.items():
            if request_id not in self.failed:
                assert self.got[request_id] == answer(r), request_id


@pytest.mark.parametrize("seed", range(30))
def test_any_deaths_leave_the_tokens_as_they_were(seed):
    """Random adds, deaths, steps; no request is computed at enough deaths alone to be suspected for good."""
    rng = random.Random(seed)
    world = World()
    for i in range(40):
        action = rng.choice(["add", "add", "step", "step", "step", "death"])
        if action == "add":
            world.add(request(f"r{i}", rng.randint(1, 12), rng.choice([1, 1, 3])))
        elif world.engine is None:
            world.up()
        elif action == "step":
            world.step()
        elif len(world.journal.entries) != 1 and not world.journal.suspects:
            world.down()
    world.finish()
    world.check()
    assert not world.failed
    assert not world.engine.live


def test_requests_wait_while_no_engine_is_up_and_keep_their_order():
    world = World()
    for name in "abc":
        world.add(request(name))
    assert not world.journal.take_messages()
    world.up()
    assert list(world.engine.live) == ["a", "b", "c"]


def test_a_request_that_ends_engines_fails_alone():
    world = World()
    names = [f"r{i}" for i in range(8)]
    world.up()
    for name in names:
        world.add(request(name, 20))
    for _ in range(3):
        world.step()
    world.add(request("poison", 20))
    world.finish(deadly=("poison",))
    assert world.failed == ["poison"]
    world.check()


def test_an_idle_servers_poison_fails_at_the_second_death():
    world = World()
    world.up()
    world.add(request("poison"))
    world.step(deadly=("poison",))
    assert not world.failed
    world.up()
    world.step(deadly=("poison",))
    assert world.failed == ["poison"]


def test_poison_is_remembered_for_a_while():
    world = World()
    world.up()
    world.add(request("poison"))
    world.finish(deadly=("poison",))
    again = request("poison", prompt=(1, 2))
    with pytest.raises(RequestPoisoned):
        world.journal.refuse_poison(again)
    world.now += POISON_MEMORY_S
    world.journal.refuse_poison(again)


def test_suspects_run_one_by_one_and_others_wait():
    world = World()
    world.up()
    for name in "abcd":
        world.add(request(name, 30))
    for _ in range(2):
        world.step()
        world.down()
        world.up()
    world.max_together = 0
    world.add(request("new", 3))
    assert len(world.engine.live) == 1
    for _ in range(4):
        world.step()
        assert len(world.engine.live) == 1 or not world.journal.suspects
    while world.journal.suspects:
        assert len(world.engine.live) == 1
        world.step()
    assert len(world.engine.live) == 5
    world.finish()
    world.check()


def test_a_client_that_leaves_while_it_is_the_suspect_lets_the_next_one_run():
    world = World()
    world.up()
    for name in "ab":
        world.add(request(name, 30))
    for _ in range(2):
        world.step()
        world.down()
        world.up()
    world.journal.remove("a")
    world.flush()
    assert [r.split("~")[0] for r in world.engine.live] == ["b"]


def test_leaving_aborts_and_late_outputs_are_dropped():
    world = World()
    world.up()
    world.add(request("a"))
    world.journal.remove("a")
    assert world.journal.record(EngineOutput("a", 0, [1])) is None
    assert [m.sequences for m in world.journal.take_messages()] == [[("a", None), ("a", None)]]
    assert world.journal.record(EngineOutput("a", 0, [1], finish_reason="stop")) is None
    assert not world.journal.take_messages(), "what has ended needs no abort"


def test_a_stopped_sequence_is_not_computed_again_after_a_death():
    world = World()
    world.up()
    world.add(request("a", 10, n=2))
    world.step()
    world.journal.stop("a", 0)
    world.flush()
    world.down()
    world.up()
    for _ in range(3):
        world.step()
    assert len(world.got["a"][0]) == 1 and len(world.got["a"][1]) == 4
    world.journal.stop("a", 1)
    assert not world.journal.entries
    world.flush()
    assert not world.engine.live


def test_prompt_logprobs_are_told_once():
    journal = Journal()
    journal.add(request("a"))
    journal.engine_up()
    first = EngineOutput("a", 0, [1], prompt_logprobs=[])
    assert journal.record(first) is first
    journal.engine_down()
    journal.engine_up()
    told = journal.record(EngineOutput("a~2", 0, [2], prompt_logprobs=[]))
    assert told == EngineOutput("a", 0, [2])
