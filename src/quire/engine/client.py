"""EngineClient: the API process's side of the engine. It outlives engines: what one leaves undone, the next is given again."""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.engine import ipc
from quire.engine.journal import POISONED, Journal
from quire.engine.times import Times
from quire.errors import EngineUnavailable, QueueFull, QuireError, RequestPoisoned

log = logging.getLogger("quire.client")
HELLO_TIMEOUT_S = 10.0
WATCH_TICK_S = 0.25
SILENCE_UNHEALTHY_S = 5.0  # ten heartbeats
SILENCE_STUCK_S = 10.0


class Mailbox:
    """Outputs that a stream has not read yet. All that is pending is read at once, so that a slow reader costs no more memory
    than its tokens.

    open_ids  requests of the stream that have not ended
    """

    def __init__(self, request_ids: list[str]) -> None:
        self.outputs: list[EngineOutput] = []
        self.open_ids = set(request_ids)
        self.error: QuireError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Something has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something comes. For one reader; asyncio.Event, which takes any number, costs twice as much a token."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def end(self, request_id: str, error: QuireError | None = None) -> None:
        """Nothing more will come for this request."""
        self.open_ids.discard(request_id)
        self.error = self.error or error
        self.wake()


class Stream:
    """The outputs of submitted requests, as they come; ends when all their sequences have ended, or raises QuireError.

    It owns the requests: when it is closed, or nobody holds it any more, they leave the engine.
    times  by request id
    """

    def __init__(self, mailbox: Mailbox, times: dict[str, Times], client: "EngineClient") -> None:
        self.times = times
        self._mailbox = mailbox
        self._client = client
        self._release = weakref.finalize(self, client.release, list(times))

    def __aiter__(self) -> AsyncIterator[list[EngineOutput]]:
        return self

    async def __anext__(self) -> list[EngineOutput]:
        box = self._mailbox
        while not box.outputs:
            if box.error is not None:
                raise box.error
            if not box.open_ids:
                raise StopAsyncIteration
            await box.wait()
        outputs, box.outputs = box.outputs, []
        return outputs

    def stop(self, request_id: str, index: int) -> None:
        """One sequence is not wanted any further; its client has seen its end."""
        self._client.stop(request_id, index)

    def fail(self, error: QuireError) -> None:
        """Gives up what has not ended; whoever reads gets the error."""
        self._client.fail(list(self.times), error)

    def close(self) -> None:
        """Gives the requests up. Harmless when they are done."""
        self._release()


@dataclass
class Ticket:
    """Where the outputs of one live request go."""

    mailbox: Mailbox
    times: Times


class EngineClient:
    """Submits requests to whatever engine is alive and hands on what it gives.

    token       what an engine of this server must say first
    step_timeout_s  a step that takes longer means that the engine is stuck
    on_ready    called when an engine serves (again)
    on_stuck    called with the engine's pid and the reason when it must be killed
    on_outputs  called for each step's report, for metrics
    """

    def __init__(
        self,
        *,
        token: str,
        step_timeout_s: float = 60.0,
        on_ready: Callable[[ipc.Ready], None] = lambda ready: None,
        on_stuck: Callable[[int, str], None] = lambda pid, reason: None,
        on_outputs: Callable[[ipc.Outputs], None] = lambda outputs: None,
    ) -> None:
        self.journal = Journal()
        self.ready: ipc.Ready | None = None
        self.stats = ipc.Stats()
        self.max_num_waiting: int | None = None
        self.watch = Watch(step_timeout_s)
        self._start: ipc.Start | None = None
        self._startable = asyncio.Event()
        self._token = token
        self._on_ready, self._on_stuck, self._on_outputs = on_ready, on_stuck, on_outputs
        self._tickets: dict[str, Ticket] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._pid = 0
        self._closed: QuireError | None = None

    async def listen(self, path: str) -> None:
        """Waits for engines at the UNIX socket `path`."""
        self._loop = asyncio.get_running_loop()
        self._listener = await asyncio.start_unix_server(self._serve_connection, path, limit=2**20)

    def configure(self, args: dict[str, Any]) -> None:
        """Engine options, for the first engine; the next ones get the config that it resolved from them."""
        self._start = ipc.Start(args)
        self._startable.set()

    @property
    def serving(self) -> bool:
        """An engine is connected, ready and not stuck."""
        return self.ready is not None and self.watch.healthy

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Queues requests. While no engine is up they wait for one.

        Raises QueueFull, RequestPoisoned, or EngineUnavailable when no engine will come any more.
        """
        if self._closed is not None:
            raise self._closed
        if self.max_num_waiting is not None:
            self._check_room(self.max_num_waiting)
        for request in requests:
            self.journal.refuse_poison(request)
        mailbox = Mailbox([request.id for request in requests])
        stream = Stream(mailbox, {request.id: Times(time.monotonic()) for request in requests}, self)
        for request in requests:
            self._tickets[request.id] = Ticket(mailbox, stream.times[request.id])
            self.journal.add(request)
        self._flush()
        return stream

    def close(self, error: QuireError | None = None) -> None:
        """No engine will come any more: every live request fails."""
        self._closed = error or EngineUnavailable("the server is stopping")
        for request_id in list(self._tickets):
            self._fail(request_id, self._closed)
        if self._writer is not None:
            self._send(ipc.Shutdown())

    async def watch_engine(self) -> None:
        """Runs for ever: notices an engine that hangs. Counts only time in which this process itself ran."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_TICK_S)
            now = time.monotonic()
            reason = self.watch.tick(min(now - before, 2 * WATCH_TICK_S)) if self.ready is not None else None
            before = now
            if reason is not None:
                log.error("the engine is stuck: %s", reason)
                self._on_stuck(self._pid, reason)

    def stop(self, request_id: str, index: int) -> None:
        """Ends one sequence of a request, without an output."""
        self.journal.stop(request_id, index)
        if request_id not in self.journal.entries and request_id in self._tickets:
            self._tickets.pop(request_id).mailbox.end(request_id)
        self._flush()

    def fail(self, request_ids: list[str], error: QuireError) -> None:
        """These requests end with an error, those of them that have not ended."""
        for request_id in request_ids:
            self._fail(request_id, error)
        self._flush()

    def release(self, request_ids: list[str]) -> None:
        """Nobody holds these requests any more. May be called from any thread, as the garbage collector does."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to release
            self._loop.call_soon_threadsafe(self._forget, request_ids)

    def _forget(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._tickets.pop(request_id, None)
            self.journal.remove(request_id)
        self._flush()

    def _check_room(self, max_num_waiting: int) -> None:
        """The limit is on requests that wait beyond those for which a seat is free."""
        num_seats = self.ready.config.max_num_seqs - self.journal.num_running if self.ready is not None else 0
        if self.journal.num_waiting >= max_num_waiting + max(num_seats, 0):
            raise QueueFull(
                f"{self.journal.num_waiting} requests wait; the limit is --max-num-queued-reqs {max_num_waiting}"
            )

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One engine's whole life, from hello to its end. A peer that speaks out of turn is closed, and nothing else."""
        try:
            body = await asyncio.wait_for(ipc.read(reader), HELLO_TIMEOUT_S)
            hello = ipc.decode(body or b"", ipc.from_engine)
            if not isinstance(hello, ipc.Hello) or hello.token != self._token:
                return
            if self._writer is not None:
                self._lost(self._writer)
            self._writer, self._pid = writer, hello.pid
            await self._startable.wait()
            self._send(ipc.Shutdown() if self._closed or self._start is None else self._start)
            while self._writer is writer:
                body = await ipc.read(reader)
                if body is None:
                    break
                self._handle(ipc.decode(body, ipc.from_engine))
        except ipc.BadFrame as error:
            log.warning("a peer of the engine socket was closed: %s", error)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            pass  # cancelled: the loop ends, and asyncio's streams would log a traceback for it
        finally:
            self._lost(writer)
            writer.close()

    def _handle(self, message: ipc.FromEngine) -> None:
        self.watch.heard()
        if isinstance(message, ipc.Outputs):
            self._deliver(message)
        elif isinstance(message, ipc.Heartbeat):
            self.watch.beat(message)
            self.stats = message.stats
        elif isinstance(message, ipc.Started):
            self._started(message.request_ids)
        elif isinstance(message, ipc.Ready):
            self._engine_up(message)
        elif isinstance(message, ipc.Refused):
            self._refused(message)
        self._flush()

    def _deliver(self, message: ipc.Outputs) -> None:
        self.watch.progressed()
        self.stats = message.stats
        now = time.monotonic()
        for output in message.outputs:
            told = self.journal.record(output)
            ticket = self._tickets.get(told.request_id) if told is not None else None
            if told is None or ticket is None:
                continue
            ticket.times.came(now, len(told.token_ids))
            ticket.mailbox.outputs.append(told)
            ticket.mailbox.wake()
            if told.request_id not in self.journal.entries:
                del self._tickets[told.request_id]
                ticket.mailbox.end(told.request_id)
        self._on_outputs(message)

    def _started(self, wire_ids: list[str]) -> None:
        self.journal.start(wire_ids)
        for request_id in filter(None, map(self.journal.request_id_of, wire_ids)):
            num_sequences = self.journal.entries[request_id].request.params.n
            self._tickets[request_id].times.admitted(time.monotonic(), num_sequences)

    def _engine_up(self, ready: ipc.Ready) -> None:
        self.ready = ready
        self._start = ipc.Start(self._start.args if self._start else {}, ready.config)
        self.watch.reset()
        self.journal.engine_up()
        self._on_ready(ready)

    def _lost(self, writer: asyncio.StreamWriter) -> None:
        if self._writer is not writer:
            return
        writer.close()
        self._writer = None
        self.ready = None
        self.stats = ipc.Stats()
        for request_id in self.journal.engine_down():
            self._fail(request_id, RequestPoisoned(POISONED))

    def _refused(self, message: ipc.Refused) -> None:
        request_id = self.journal.request_id_of(message.request_id)
        if request_id is not None:
            self._fail(request_id, ipc.error_named(message.kind, message.message, message.param))

    def _fail(self, request_id: str, error: QuireError) -> None:
        ticket = self._tickets.pop(request_id, None)
        self.journal.remove(request_id)
        if ticket is not None:
            ticket.mailbox.end(request_id, error)

    def _flush(self) -> None:
        if self._writer is not None:
            for message in self.journal.take_messages():
                self._send(message)

    def _send(self, message: ipc.Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(ipc.encode(message))


class Watch:
    """Whether the engine is alive, in seconds of this process's own running time."""

    def __init__(self, step_timeout_s: float) -> None:
        self.step_timeout_s = step_timeout_s
        self.max_silence_s = min(SILENCE_STUCK_S, 2 * step_timeout_s)
        self.reset()

    def reset(self) -> None:
        """A new engine."""
        self.silent_s = 0.0
        self.stalled_s = 0.0
        self.num_steps = -1
        self.working = False

    def heard(self) -> None:
        """Any message came."""
        self.silent_s = 0.0

    def progressed(self) -> None:
        """A step ended."""
        self.stalled_s = 0.0

    def beat(self, heartbeat: ipc.Heartbeat) -> None:
        """A heartbeat came."""
        if heartbeat.stats.num_steps != self.num_steps or not heartbeat.working:
            self.stalled_s = 0.0
        self.num_steps, self.working = heartbeat.stats.num_steps, heartbeat.working

    def tick(self, elapsed_s: float) -> str | None:
        """Time passed. Returns why the engine must be killed, when it must."""
        self.silent_s += elapsed_s
        self.stalled_s += elapsed_s if self.working else 0.0
        if self.silent_s > self.max_silence_s:
            return f"nothing heard for {self.silent_s:.0f} s"
        if self.stalled_s > self.step_timeout_s:
            return f"a step has taken {self.stalled_s:.0f} s"
        return None

    @property
    def healthy(self) -> bool:
        """The engine speaks, and its step is not overdue."""
        return self.silent_s <= min(SILENCE_UNHEALTHY_S, self.step_timeout_s) and self.stalled_s <= self.step_timeout_s
