"""The supervisor: owns the listening socket, starts the API process and the engine process, replaces what dies. No torch.

    supervisor --- control channel (JSON lines) ---> API process  alive, ready | stuck, fault  <-   drain, give_up  ->
        |                                              | UNIX socket in a private directory (engine/ipc.py)
        +--------- control channel -----------------> engine process  fault  <-

Children cannot outlive it: the kernel kills them with it, and the control channel's end tells them too.
"""

import collections
import contextlib
import dataclasses
import logging
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from quire.config import EngineArgs
from quire.errors import SetupError
from quire.log import configure as configure_logging
from quire.server import listen, rundir
from quire.server.child import Child
from quire.server.options import ServerArgs
from quire.server.tracing import check_endpoint

log = logging.getLogger("quire.supervisor")
DEATHS_WINDOW_S = 600.0
GRACE_S = 5.0  # beyond the drain time, for answers under way
WATCH_TICK_S = 1.0  # as often as the API process says that its loop runs
GIVE_UP_S = 2.0  # for telling clients that no engine will come
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)  # after so many starts in a row that came to nothing
API_COMMAND = (sys.executable, "-m", "quire.server.process")
ENGINE_COMMAND = (sys.executable, "-m", "quire.engine.process")


def serve(engine_args: EngineArgs, server_args: ServerArgs) -> int:
    """Serves until told to stop. Returns the exit code: 0 stopped as asked, 1 gave up. Raises SetupError when it cannot start."""
    configure_logging(server_args.log_format)
    check_endpoint(server_args.otlp_traces_endpoint)
    return Supervisor(engine_args, server_args).run()


class Supervisor:
    """One server's processes."""

    def __init__(
        self,
        engine_args: EngineArgs,
        server_args: ServerArgs,
        *,
        engine_command: Sequence[str] = ENGINE_COMMAND,
        api_command: Sequence[str] = API_COMMAND,
    ) -> None:
        self._engine_args = dataclasses.asdict(engine_args)
        self._args = server_args
        self._commands = {"engine": engine_command, "API": api_command}
        self._children: dict[str, Child] = {}
        self._restart_at: dict[str, float] = {}
        self._deaths: collections.deque[float] = collections.deque()
        self._api_silence_s: float | None = None  # None: not heard of yet
        self._was_ready = False
        self._num_failed_starts = 0  # deaths since an engine was ready
        self._draining_until: float | None = None
        self._exit_code: int | None = None
        self._selector = selectors.DefaultSelector()
        self._token = secrets.token_hex(16)
        self.url: str | None = None  # once it listens

    def run(self) -> int:
        """Serves. Raises SetupError when it cannot start."""
        self._began_s = self._looked_s = time.monotonic()
        self._listener = listen.bind(self._args.host, self._args.port)
        self._run_dir = rundir.create()
        self.url = listen.url_of(self._listener)
        try:
            with self._signals():
                self._start("API")
                self._start("engine")
                return self._watch()
        finally:
            for child in self._children.values():
                child.kill()
            self._selector.close()
            self._listener.close()
            rundir.remove(self._run_dir)

    def _watch(self) -> int:
        while self._exit_code is None:
            for key, _ in self._selector.select(self._until_next_deadline()):
                key.data(key.fileobj)
            self._reap()
            self._watch_api()
            self._restart_due()
            if self._draining_until is not None and time.monotonic() > self._draining_until:
                log.warning("requests were still running at the end of the drain time")
                self._exit_code = 0
        return self._exit_code

    def _watch_api(self) -> None:
        """Counts the time in which this process ran and heard nothing of the API process; a machine that slept is no fault of it."""
        now = time.monotonic()
        elapsed_s, self._looked_s = min(now - self._looked_s, 2 * WATCH_TICK_S), now
        api = self._children.get("API")
        if api is None or self._api_silence_s is None:
            return
        self._api_silence_s += elapsed_s
        if self._api_silence_s > self._args.api_process_timeout:
            log.error("the API process hangs: its loop has not run for %.0f s", self._api_silence_s)
            self._api_silence_s = None
            api.process.kill()

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """SIGTERM, SIGINT and SIGCHLD wake the selector as bytes of a socket: no code runs inside a handler."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        old_fd = signal.set_wakeup_fd(theirs.fileno())
        self._selector.register(ours, selectors.EVENT_READ, self._on_signals)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            ours.close()
            theirs.close()

    def _on_signals(self, sock: Any) -> None:
        for number in sock.recv(64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop()

    def _stop(self) -> None:
        """The first signal drains, the second one ends."""
        if self._draining_until is not None or "API" not in self._children:
            self._exit_code = 0
            return
        log.info("stopping: running requests have %.0f s to finish", self._args.shutdown_timeout)
        self._draining_until = time.monotonic() + self._args.shutdown_timeout + GRACE_S
        self._children["API"].control.send(op="drain", timeout_s=self._args.shutdown_timeout)

    def _start(self, name: str) -> None:
        settings: dict[str, Any] = {"socket": str(self._run_dir / "engine.sock"), "token": self._token}
        settings["began_s"] = self._began_s
        settings["log_format"] = self._args.log_format
        fds = []
        if name == "API":
            self._api_silence_s = None
            fds.append(self._listener.fileno())
            settings["listener"] = self._listener.fileno()
            settings["engine_args"] = self._engine_args
            settings["server_args"] = dataclasses.asdict(self._args)
        child = Child(name, self._commands[name], settings, fds)
        self._children[name] = child
        self._selector.register(child.control.sock, selectors.EVENT_READ, lambda _: self._hear(child))

    def _hear(self, child: Child) -> None:
        messages = child.control.receive_ready()
        if messages is None:
            self._selector.unregister(child.control.sock)
            child.control.sock.close()
            return
        for message in messages:
            if message["op"] == "alive":
                self._api_silence_s = 0.0
            elif message["op"] == "ready":
                self._was_ready = True
                self._num_failed_starts = 0
            elif message["op"] == "fault":
                child.fault = message["message"]
            elif message["op"] == "stuck":
                self._kill_stuck(message["pid"])

    def _kill_stuck(self, pid: int) -> None:
        engine = self._children.get("engine")
        if engine is not None and engine.pid == pid:  # an older one's message changes nothing
            engine.process.kill()

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            if child.process.poll() is not None:
                self._hear_last_words(child)
                del self._children[name]
                self._ended(child)

    def _hear_last_words(self, child: Child) -> None:
        while child.control.sock.fileno() >= 0:
            self._hear(child)

    def _ended(self, child: Child) -> None:
        """Decides what a child's end means."""
        if child.name == "API" and self._draining_until is not None:
            self._exit_code = 0
        elif self._draining_until is not None and child.process.returncode == 0:
            log.debug("the engine has left")  # the API process told it to, as nothing is under way any more
        elif child.fault is not None and not self._was_ready:
            raise SetupError(child.fault)
        elif not self._was_ready:
            log.error("the %s process ended while it started: %s", child.name, child.how_it_ended())
            self._exit_code = 1
        else:
            self._replace(child)

    def _replace(self, child: Child) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > DEATHS_WINDOW_S:
            self._deaths.popleft()
        why = child.fault or child.how_it_ended()
        if len(self._deaths) >= self._args.max_engine_deaths:
            log.error(
                "the %s process ended (%s) for the %d. time in 10 minutes: giving up",
                child.name,
                why,
                len(self._deaths),
            )
            self._give_up()
            return
        pause_s = BACK_OFF_S[min(self._num_failed_starts, len(BACK_OFF_S) - 1)]
        self._num_failed_starts += 1
        log.error("the %s process ended (%s); a new one starts in %.1f s", child.name, why, pause_s)
        self._restart_at[child.name] = now + pause_s

    def _give_up(self) -> None:
        self._exit_code = 1
        if (api := self._children.get("API")) is not None:
            api.control.send(op="give_up")
            api.wait(GIVE_UP_S)

    def _restart_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, at in self._restart_at.items() if at <= now]:
            del self._restart_at[name]
            self._start(name)

    def _until_next_deadline(self) -> float | None:
        deadlines = [*self._restart_at.values()]
        if self._api_silence_s is not None:
            deadlines.append(time.monotonic() + WATCH_TICK_S)
        if self._draining_until is not None:
            deadlines.append(self._draining_until)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
