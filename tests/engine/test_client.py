"""EngineClient with an engine process in a thread: submit, stop, leave, refuse, replace, watch."""

import asyncio
import gc
import logging
import random
import socket
import threading
import time

import pytest
from fake_engine import CONFIG, FakeEngine, answer

from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine import client as client_module
from quire.engine import ipc
from quire.engine import process as process_module
from quire.engine.client import EngineClient, Watch
from quire.engine.process import EngineProcess
from quire.errors import ContextLengthExceeded, EngineUnavailable, QueueFull, RequestPoisoned


def request(name: str, max_tokens: int = 20, n: int = 1, length: int = 3) -> Request:
    return Request(name, [*name.encode(), *range(length)], SamplingParams(max_tokens=max_tokens, n=n, seed=3))


class World:
    """A client, and engines that can be made to vanish."""

    def __init__(self, folder) -> None:
        self.path = str(folder / "engine.sock")
        self.stuck: list[tuple[int, str]] = []
        self.engines: list[FakeEngine] = []
        self.threads: list[threading.Thread] = []
        self.steps = threading.Lock()  # who holds it keeps engines from making steps

    async def begin(self, **options) -> EngineClient:
        self.client = EngineClient(token="t", on_stuck=lambda pid, why: self.stuck.append((pid, why)), **options)
        await self.client.listen(self.path)
        self.client.configure({})
        self.start_engine()
        await self.until(lambda: self.client.serving)
        return self.client

    def start_engine(self) -> None:
        engine = FakeEngine(step_s=0.001)
        step = engine.step

        def step_where_allowed():
            with self.steps:
                return step()

        engine.step = step_where_allowed
        self.engines.append(engine)
        process = EngineProcess(self.path, "t", lambda args, config: engine)
        self.threads.append(threading.Thread(target=process.run, daemon=True))
        self.threads[-1].start()

    async def replace_engine(self) -> None:
        """What the client sees of a death: the connection ends, and a fresh engine comes."""
        with self.steps:  # it says nothing any more
            self.client._writer.transport.abort()
            await asyncio.sleep(0)
            self.engines[-1].live.clear()
            self.engines[-1].admitted.clear()
        await self.until(lambda: self.client.serving)

    async def until(self, condition, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    async def end(self) -> None:
        """Every engine is told to leave, one that sought a new connection too; then all connections end."""
        self.client.close()
        await self.until(lambda: not any(thread.is_alive() for thread in self.threads))
        await self.until(lambda: self.client._writer is None)
        self.client._listener.close()


def run(folder, scenario, **options) -> None:
    async def main() -> None:
        world = World(folder)
        await world.begin(**options)
        try:
            await asyncio.wait_for(scenario(world, world.client), 120)
        finally:
            await world.end()

    asyncio.run(main())


async def tokens(stream, requests) -> dict[str, list[list[int]]]:
    got = {r.id: [[] for _ in range(r.params.n)] for r in requests}
    async for outputs in stream:
        for output in outputs:
            got[output.request_id][output.index] += output.token_ids
    return got


def test_streams_give_each_request_its_tokens(tmp_path):
    async def scenario(world, client):
        groups = [
            [request("a", n=3)],
            [request("b"), request("c", 5, n=2)],
            [request(f"d{i}", i + 1) for i in range(30)],
        ]
        streams = [client.submit(group) for group in groups]
        for got, group in zip(await asyncio.gather(*map(tokens, streams, groups)), groups, strict=True):
            assert got == {r.id: answer(r) for r in group}
        assert not client.journal.entries and not world.engines[0].live
        assert not world.engines[0].aborted
        times = streams[0].times["a"]
        assert times.submitted_s <= times.started_s <= time.monotonic()

    run(tmp_path, scenario)


def test_engines_that_vanish_leave_no_trace_in_the_streams(tmp_path):
    async def scenario(world, client):
        requests = [request(f"r{i}", 120, n=1 + i % 2) for i in range(16)]
        tasks = [asyncio.ensure_future(tokens(client.submit([r]), [r])) for r in requests]
        await asyncio.sleep(0.05)
        await world.replace_engine()
        for task, r in zip(tasks, requests, strict=True):
            assert (await task) == {r.id: answer(r)}

    run(tmp_path, scenario)


def test_requests_wait_for_an_engine(tmp_path):
    async def scenario(world, client):
        client._send(ipc.Shutdown())
        await world.until(lambda: client._writer is None)
        r = request("a")
        task = asyncio.ensure_future(tokens(client.submit([r]), [r]))
        await asyncio.sleep(0.02)
        assert not task.done() and not client.serving
        world.start_engine()
        assert (await task) == {"a": answer(r)}

    run(tmp_path, scenario)


def test_closing_a_stream_or_forgetting_it_aborts(tmp_path):
    async def scenario(world, client):
        closed, forgotten = (
            client.submit([request("a", 10**6)]),
            client.submit([request("b", 10**6), request("c", 10**6)]),
        )
        await world.until(lambda: len(world.engines[0].live) == 3)
        closed.close()
        await world.until(lambda: world.engines[0].aborted == ["a"])
        del forgotten
        gc.collect()
        await world.until(lambda: not world.engines[0].live)
        assert not client.journal.entries and not client._tickets

    run(tmp_path, scenario)


def test_an_abort_that_has_come_waits_for_one_step_at_most(tmp_path, monkeypatch):
    connections = []

    class Kept(process_module.Connection):
        def __init__(self, sock):
            super().__init__(sock)
            connections.append(self)

    monkeypatch.setattr(process_module, "Connection", Kept)

    async def scenario(world, client):
        engine = world.engines[0]
        allowed = threading.Semaphore(0)
        step = engine.step
        engine.step = lambda: allowed.acquire() and step()
        for i in range(5):
            stream = client.submit([request(f"a{i}", 10**6)])
            allowed.release()
            await anext(stream)
            client._forget([f"a{i}"])
            await world.until(lambda: connections[0]._inbox or len(engine.aborted) > i)  # noqa: B023
            if connections[0]._inbox:
                allowed.release()
            await world.until(lambda: len(engine.aborted) > i)  # noqa: B023
            while allowed.acquire(blocking=False):
                pass

    run(tmp_path, scenario)


def test_stopping_the_last_sequence_ends_the_stream(tmp_path):
    async def scenario(world, client):
        stream = client.submit([request("a", 10**6, n=2)])
        await anext(stream)
        stream.stop("a", 0)
        await world.until(lambda: world.engines[0].counts["a"][0] == 10**6)
        stream.stop("a", 1)
        async for _ in stream:
            pass
        await world.until(lambda: not world.engines[0].live)

    run(tmp_path, scenario)


def test_a_refusal_reaches_the_one_who_asked(tmp_path):
    async def scenario(world, client):
        good, bad = request("good"), request("bad", length=5000)
        streams = client.submit([good]), client.submit([bad])
        with pytest.raises(ContextLengthExceeded):
            await tokens(streams[1], [bad])
        assert (await tokens(streams[0], [good])) == {"good": answer(good)}

    run(tmp_path, scenario)


def test_more_than_the_allowed_number_may_not_wait(tmp_path):
    async def scenario(world, client):
        client.max_num_waiting = 2
        seats = CONFIG.max_num_seqs
        with world.steps:  # nothing is admitted while the test submits
            streams = [client.submit([request(f"r{i}", 3)]) for i in range(seats + 2)]
            with pytest.raises(QueueFull, match="max-num-queued-reqs 2"):
                client.submit([request("one more", 3)])
        await world.until(lambda: client.journal.num_waiting == 0)
        streams.append(client.submit([request("one more", 3)]))

    run(tmp_path, scenario)


def test_poison_fails_alone(tmp_path):
    async def scenario(world, client):
        poison, good = request("poison", 10**6), request("good", 200)
        stream = client.submit([poison])
        await anext(stream)
        await world.replace_engine()
        await world.until(lambda: client.journal.entries["poison"].started)
        good_stream = client.submit([good])
        await world.replace_engine() if client.journal.entries["good"].started else None
        while "poison" in client.journal.entries:
            await world.until(lambda: client.journal.entries["poison"].started)
            await world.replace_engine()
        with pytest.raises(RequestPoisoned):
            await tokens(stream, [poison])
        assert (await tokens(good_stream, [good])) == {"good": answer(good)}
        with pytest.raises(RequestPoisoned):
            client.submit([request("poison", 10**6)])

    run(tmp_path, scenario)


def test_closing_the_client_fails_what_is_live_and_what_comes(tmp_path):
    async def scenario(world, client):
        stream = client.submit([request("a", 10**6)])
        client.close(EngineUnavailable("enough"))
        with pytest.raises(EngineUnavailable, match="enough"):
            async for _ in stream:
                pass
        with pytest.raises(EngineUnavailable):
            client.submit([request("b")])

    run(tmp_path, scenario)


def test_strangers_on_the_socket_change_nothing(tmp_path, caplog):
    async def scenario(world, client):
        rng = random.Random(0)
        r = request("a", 300)
        task = asyncio.ensure_future(tokens(client.submit([r]), [r]))
        hello = ipc.encode(ipc.Hello("wrong", 1))
        for _ in range(100):
            reader, writer = await asyncio.open_unix_connection(world.path)
            body = rng.randbytes(rng.randint(0, 100))
            writer.write(rng.choice([hello, body, len(body).to_bytes(4, "big") + body, b"\xff" * 8]))
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        assert (await task) == {"a": answer(r)}
        assert client.serving

    with caplog.at_level(logging.CRITICAL):
        run(tmp_path, scenario)


def test_an_engine_that_says_nonsense_is_closed_and_its_requests_go_on(tmp_path):
    async def scenario(world, client):
        r = request("a", 300)
        task = asyncio.ensure_future(tokens(client.submit([r]), [r]))
        await asyncio.sleep(0.02)
        fake = socket.socket(socket.AF_UNIX)
        fake.connect(world.path)
        fake.sendall(ipc.encode(ipc.Hello("t", 1)) + b"\0\0\0\1\xc1")  # takes the engine's place, then breaks the rules
        assert (await task) == {"a": answer(r)}
        fake.close()

    run(tmp_path, scenario)


def test_a_silent_engine_is_reported_with_its_pid(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "SILENCE_UNHEALTHY_S", 0.7)

    async def scenario(world, client):
        monkeypatch.setattr(ipc, "HEARTBEAT_S", 1000.0)  # counts from the next connection on
        await world.replace_engine()
        client.watch.max_silence_s = 1000.0
        watching = asyncio.ensure_future(client.watch_engine())
        await world.until(lambda: not client.serving)
        assert not world.stuck
        client.watch.max_silence_s = 1.0
        await world.until(lambda: world.stuck)
        watching.cancel()

    run(tmp_path, scenario)


def test_the_watch_counts_steps_that_do_not_end():
    watch = Watch(step_timeout_s=60)
    beat = ipc.Heartbeat(ipc.Stats(num_steps=5), working=True)
    for _ in range(200):
        watch.heard()
        watch.beat(beat)
        reason = watch.tick(0.5)
        if reason:
            break
    assert reason == "a step has taken 60 s" and not watch.healthy
    watch.beat(ipc.Heartbeat(ipc.Stats(num_steps=6), working=True))
    assert watch.healthy


def test_the_watch_lets_an_idle_engine_be():
    watch = Watch(step_timeout_s=1)
    for _ in range(200):
        watch.heard()
        watch.beat(ipc.Heartbeat(ipc.Stats(num_steps=5), working=False))
        assert watch.tick(0.5) is None and watch.healthy
