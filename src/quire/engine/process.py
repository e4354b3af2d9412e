"""The engine process: an Engine behind a socket. Disposable: it holds nothing that the API process could not give to the next.

main thread   takes commands, runs steps, sends what they gave
reader        puts commands into the inbox; the socket's end is one of them
outbox        sends what waited (outbox.py)
heartbeat     says every HEARTBEAT_S that the process lives and how many steps it has made
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from quire.config import EngineArgs, EngineConfig
from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.engine import ipc
from quire.engine.lifeline import Control, die_with_parent, follow
from quire.engine.outbox import HOLD_EACH_S, Outbox
from quire.errors import QuireError, ServerError, SetupError
from quire.head_start import head_start
from quire.log import configure as configure_logging

log = logging.getLogger("quire.engine")
CONNECT_TIMEOUT_S = 60.0
CONNECT_PAUSE_S = 0.02


class EngineLike(Protocol):
    """What this process needs of an engine.

    config      as resolved
    num_blocks  KV blocks that sequences can have
    on_admitted  called with ids of requests that leave the queue, before the step that computes them
    """

    config: EngineConfig
    num_blocks: int
    on_admitted: Callable[[list[str]], None] | None

    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...
    def step(self) -> list[EngineOutput]: ...
    def has_work(self) -> bool: ...
    def stats(self) -> Any: ...
    def close(self) -> None: ...


MakeEngine = Callable[[EngineArgs, EngineConfig | None], EngineLike]


class Connection:
    """The socket to the API process. Sending is allowed from any thread; a peer that is gone is noticed by the reader."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        self._inbox: collections.deque[ipc.ToEngine | None] = collections.deque()
        self._filled = threading.Event()
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def send(self, message: ipc.Message) -> None:
        """Raises FrameTooLarge."""
        frame = ipc.encode(message)
        try:
            with self._send_lock:
                self._sock.sendall(frame)
        except OSError:
            return

    def take(self, wait: bool) -> list[ipc.ToEngine | None]:
        """Commands that have come, in order; None stands for the connection's end. `wait`: until there is one."""
        if wait:
            self._filled.wait()
        self._filled.clear()
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def close(self) -> None:
        """Ends the connection, and the reader with it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read(self) -> None:
        try:
            while (body := ipc.receive(self._sock)) is not None:
                self._inbox.append(ipc.decode(body, ipc.to_engine))
                self._filled.set()
        except (ipc.BadFrame, OSError) as error:
            log.warning("the connection to the API process was closed: %s", error)
        self._inbox.append(None)
        self._filled.set()


class EngineProcess:
    """Serves one API process after the other with one engine."""

    def __init__(self, path: str, token: str, make_engine: MakeEngine) -> None:
        self._path = path
        self._token = token
        self._make_engine = make_engine
        self._engine: EngineLike | None = None
        self._outbox: Outbox | None = None
        self._live: dict[str, set[int]] = {}  # request id -> its sequences that have not ended
        self._num_steps = 0
        self._stats = ipc.Stats()
        self._working = False

    def run(self) -> None:
        """Until the API process says goodbye, or none is there any more. Raises SetupError when the engine cannot start."""
        wanted = True
        while wanted:
            connection = Connection(connect(self._path))
            connection.send(ipc.Hello(self._token, os.getpid()))
            stop = threading.Event()
            threading.Thread(target=self._beat, args=(connection, stop), name="heartbeat", daemon=True).start()
            self._outbox = Outbox(functools.partial(self._send_outputs, connection))
            wanted = self._serve(connection)
            stop.set()
            self._outbox.close()
            connection.close()
            self._abort_all()
        if self._engine is not None:
            self._engine.close()

    def _serve(self, connection: Connection) -> bool:
        """Runs steps until the connection ends. Returns whether to wait for another one."""
        while True:
            for message in connection.take(wait=not self._has_work()):
                if message is None:
                    return True
                if isinstance(message, ipc.Shutdown):
                    return False
                self._obey(message, connection)
            if self._has_work():
                self._step()

    def _obey(self, message: ipc.ToEngine, connection: Connection) -> None:
        if isinstance(message, ipc.Start):
            self._start(message, connection)
        elif self._engine is None:
            log.warning("a command before the engine was started is ignored")
        elif isinstance(message, ipc.Submit):
            self._add(message.request, self._engine, connection)
        elif isinstance(message, ipc.Abort):
            for request_id, index in message.sequences:
                self._abort(request_id, index, self._engine)
        self._note()

    def _start(self, start: ipc.Start, connection: Connection) -> None:
        began = time.monotonic()
        if self._engine is None:
            self._engine = self._make_engine(EngineArgs(**start.args), start.config)
        engine = self._engine
        if self._outbox is not None:
            self._outbox.each_s = HOLD_EACH_S.get(engine.config.device, 0.0)
        engine.on_admitted = lambda request_ids: connection.send(ipc.Started(request_ids))
        connection.send(ipc.Ready(engine.config, engine.num_blocks, time.monotonic() - began))

    def _add(self, request: Request, engine: EngineLike, connection: Connection) -> None:
        try:
            engine.add(request)
            self._live[request.id] = set(range(request.params.n))
        except QuireError as error:
            connection.send(ipc.Refused(request.id, type(error).__name__, str(error), error.param))
        except Exception:  # a request that the engine cannot even take harms itself alone
            log.exception("the engine failed on taking a request")
            engine.abort(request.id)
            connection.send(ipc.Refused(request.id, ServerError.__name__, "the engine failed on taking this request"))

    def _abort(self, request_id: str, index: int | None, engine: EngineLike) -> None:
        engine.abort(request_id, index)
        if self._outbox is not None:
            self._outbox.forget(request_id, self._live.get(request_id, set()) if index is None else {index})
        if index is None:
            self._live.pop(request_id, None)
        else:
            self._ended(request_id, index)

    def _step(self) -> None:
        if self._engine is None or self._outbox is None:
            return
        outputs = self._engine.step()
        self._num_steps += 1
        for output in outputs:
            if output.finish_reason is not None:
                self._ended(output.request_id, output.index)
        self._note()
        self._outbox.put(outputs, self._stats.num_step_tokens)

    def _send_outputs(self, connection: Connection, outputs: list[EngineOutput], step_tokens: list[int]) -> None:
        try:
            connection.send(ipc.Outputs(outputs, self._stats, step_tokens))
        except ipc.FrameTooLarge:
            for output in outputs:
                self._send_one(output, connection)

    def _send_one(self, output: EngineOutput, connection: Connection) -> None:
        try:
            connection.send(ipc.Outputs([output], self._stats))
        except ipc.FrameTooLarge as error:
            failed = dataclasses.replace(
                output, logprobs=None, prompt_logprobs=None, token_ids=[], finish_reason="error", error=str(error)
            )
            connection.send(ipc.Outputs([failed], self._stats))

    def _ended(self, request_id: str, index: int) -> None:
        left = self._live.get(request_id)
        if left is not None:
            left.discard(index)
            if not left:
                del self._live[request_id]

    def _abort_all(self) -> None:
        if self._engine is not None:
            for request_id in self._live:
                self._engine.abort(request_id)
        self._live.clear()
        self._note()

    def _has_work(self) -> bool:
        return self._engine is not None and self._engine.has_work()

    def _note(self) -> None:
        """Takes a picture for the heartbeat, which must not look at an engine in the middle of a step."""
        self._working = self._has_work()
        if self._engine is not None:
            self._stats = stats_of(self._engine.stats(), self._num_steps)

    def _beat(self, connection: Connection, stop: threading.Event) -> None:
        while not stop.wait(ipc.HEARTBEAT_S):
            connection.send(ipc.Heartbeat(self._stats, self._working))


def stats_of(stats: Any, num_steps: int) -> ipc.Stats:
    """The engine's statistics as they are sent; what this engine does not count stays 0."""
    known = {f for f in ipc.Stats.__struct_fields__ if f != "num_steps"}
    return ipc.Stats(num_steps=num_steps, **{name: getattr(stats, name) for name in known if hasattr(stats, name)})


def connect(path: str) -> socket.socket:
    """A connection to the API process, waited for while that starts."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise SetupError(f"no API process listens at {path}") from None
            time.sleep(CONNECT_PAUSE_S)


def child_main(prepare: Callable[[], MakeEngine], argv: list[str] | None = None) -> int:
    """Runs the process that the supervisor started; 2 when the engine cannot start as asked.

    prepare  imports what the engine needs, while the API process is not up yet either
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides when to leave
    die_with_parent(options.parent)
    control = Control.inherited(options.control_fd)
    settings = control.receive()
    if settings is None:
        return 1
    configure_logging(settings["log_format"])
    follow(control, lambda message: None)
    try:
        EngineProcess(settings["socket"], settings["token"], prepare()).run()
    except SetupError as error:
        control.send(op="fault", message=str(error))
        return 2
    except QuireError as error:
        log.error("the engine gives up: %s", error)
        return 1
    return 0


def prepare() -> MakeEngine:
    """How to make the real engine."""
    with head_start(None):
        # Imports torch, which takes two seconds; the loop above is tested without it.
        from quire.engine.engine import Engine
        from quire.setup import load_config

    def make_engine(args: EngineArgs, config: EngineConfig | None) -> EngineLike:
        """`config` is there when a predecessor resolved it: its choices stay, clients have seen them."""
        config = config or load_config(args, serving=True)[0]
        return Engine.from_config(config, log_stats=not args.disable_log_stats)

    return make_engine


if __name__ == "__main__":
    sys.exit(child_main(prepare))
