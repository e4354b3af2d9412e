"""The API process: HTTP in, tokens to and from the engine process, text out. Never imports torch.

It can be told to drain by the supervisor or by SIGTERM: new requests get 503, those under way finish, then it leaves.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import uvicorn

from quire.config import BUILTIN_MODEL, EngineArgs
from quire.engine.client import EngineClient
from quire.engine.ipc import Outputs, Ready
from quire.engine.lifeline import Control, die_with_parent
from quire.errors import EngineUnavailable, SetupError
from quire.hub import resolve_model
from quire.llm import say_if_bundled
from quire.log import configure as configure_logging
from quire.server import listen
from quire.server.app import build_app
from quire.server.options import ServerArgs
from quire.server.protocol import BoundedProtocol
from quire.server.serving import Serving
from quire.version import __version__

log = logging.getLogger("quire.server")
uvicorn_log = logging.getLogger("uvicorn.error")
# Longer than clients and proxies keep an idle connection (httpx 5 s, aiohttp 15, nginx and load balancers 60, Go 90): whoever closes first
# must be the side that sends, or a request is lost that was on its way.
KEEP_ALIVE_S = 120
PROBES = ("/health", "/ready", "/ping", "/metrics")
RESERVED_FILES = 64  # descriptors that are not HTTP connections
DRAIN_POLL_S = 0.05
ALIVE_S = 1.0
LAST_WORDS_S = 1.0  # for error events to reach their clients


class ApiProcess:
    """Everything that one API process holds."""

    def __init__(self, control: Control, settings: dict[str, Any]) -> None:
        self._control = control
        self._socket_path: str = settings["socket"]
        self._listener = socket.socket(fileno=settings["listener"])
        self._engine_args = EngineArgs(**settings["engine_args"])
        self._args = ServerArgs(**settings["server_args"])
        self._client = EngineClient(
            token=settings["token"],
            step_timeout_s=self._args.engine_step_timeout,
            on_ready=self._on_ready,
            on_stuck=lambda pid, reason: control.send(op="stuck", pid=pid, reason=reason),
            on_outputs=self._on_outputs,
        )
        self._serving = Serving(self._engine_args, self._args, self._client)
        self._client.max_num_waiting = self._engine_args.max_num_queued_reqs
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s: float = settings["began_s"]

    async def run(self) -> None:
        """Serves until drained."""
        loop = asyncio.get_running_loop()
        self._server = _QuietServer(self._uvicorn_config())
        loop.add_signal_handler(signal.SIGTERM, self._drain, self._args.shutdown_timeout)
        self._control.sock.setblocking(False)
        loop.add_reader(self._control.sock, self._hear)
        await self._client.listen(self._socket_path)
        self._spawn(self._client.watch_engine())
        self._spawn(self._say_alive())
        self._spawn(self._find_model())
        await self._server.serve([self._listener])

    def close(self) -> None:
        """After the loop: what is left to send is sent."""
        if self._serving.tracer is not None:
            self._serving.tracer.close()

    def _uvicorn_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            build_app(self._serving, max_active=raise_file_limit() - RESERVED_FILES),
            host=self._args.host,
            port=self._args.port,
            log_config=None,
            log_level=self._args.uvicorn_log_level,
            access_log=not self._args.disable_uvicorn_access_log,
            lifespan="off",
            http=BoundedProtocol,
            ws="none",
            loop="none",
            backlog=listen.BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            server_header=False,
        )

    async def _say_alive(self) -> None:
        """Tells the supervisor that this loop runs; when it has not for long, this process is replaced."""
        while True:
            self._control.send(op="alive")
            await asyncio.sleep(ALIVE_S)

    async def _find_model(self) -> None:
        """Downloads the model if need be, and tells the engine what to load."""
        args = self._engine_args
        say_if_bundled(args.model)
        try:
            folder = await asyncio.to_thread(
                resolve_model, args.model or BUILTIN_MODEL, revision=args.revision, download_dir=args.download_dir,
                token=args.hf_token, load_format=args.load_format,
            )  # fmt: skip
        except SetupError as error:
            self._fail(error)
            return
        # The limit on waiting requests is kept here, where a replay cannot run into it.
        found = dataclasses.replace(args, model=str(folder), max_num_queued_reqs=None)
        self._client.configure(dataclasses.asdict(found))

    def _on_ready(self, ready: Ready) -> None:
        self._serving.metrics.engine_up(ready)
        if self._serving.ready is None:
            self._spawn(self._load_frontend(ready))
        else:
            self._control.send(op="ready")
            self._serving.metrics.engine_deaths.inc()
            log.info("a new engine serves; requests go on where they were")

    async def _load_frontend(self, ready: Ready) -> None:
        config = dataclasses.replace(ready.config, model_name=self._engine_args.model or BUILTIN_MODEL)
        ready = Ready(config, ready.num_blocks, ready.load_s)
        try:
            await asyncio.to_thread(self._serving.load, ready)
        except SetupError as error:
            self._fail(error)
            return
        self._control.send(op="ready")
        for line in self._first_screen(ready):
            log.info("%s", line)
        uvicorn_log.info("Application startup complete.")
        uvicorn_log.info("Uvicorn running on %s (Press CTRL+C to quit)", listen.url_of(self._listener))

    def _first_screen(self, ready: Ready) -> Iterator[str]:
        config, name = ready.config, self._serving.names[0]
        url = listen.url_of(self._listener)
        yield f"quire {__version__} on {config.device}: {config.model_name} in {config.dtype}, served as {name!r}"
        num_tokens = ready.num_blocks * config.block_size
        times = num_tokens / config.max_model_len
        yield f"KV cache for {num_tokens:,} tokens: {times:.1f} requests of the longest, {config.max_model_len:,} tokens"
        yield f"ready after {time.monotonic() - self._began_s:.1f} s; try it:"
        yield (
            f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' "
            f"""-d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'"""
        )
        if not listen.is_loopback(self._args.host) and not self._serving.api_keys:
            log.warning("ANYONE WHO CAN REACH %s MAY USE THIS SERVER: no --api-key is set", url)

    def _on_outputs(self, outputs: Outputs) -> None:
        for num_tokens in outputs.step_tokens:
            self._serving.metrics.step(num_tokens)

    def _hear(self) -> None:
        """A message of the supervisor; its end is ours."""
        messages = self._control.receive_ready()
        if messages is None:
            sys.exit(1)
        for message in messages:
            if message["op"] == "drain":
                self._drain(message["timeout_s"])
            elif message["op"] == "give_up":
                self._client.close(EngineUnavailable("the engine ended too often; the server stops"))
                self._drain(0.0)

    def _drain(self, timeout_s: float) -> None:
        if not self._serving.draining:
            self._serving.draining = True
            self._spawn(self._leave_after(timeout_s))

    async def _leave_after(self, timeout_s: float) -> None:
        """Waits for requests under way, fails those that take too long, then ends the server."""
        await self._until_idle(timeout_s)
        self._client.close()
        await self._until_idle(LAST_WORDS_S)
        self._server.should_exit = True
        self._server.force_exit = self._serving.num_active > 0

    async def _until_idle(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._serving.num_active and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)

    def _fail(self, error: SetupError) -> None:
        """The server cannot start as asked: says why, and leaves."""
        self._control.send(op="fault", message=str(error))
        self._server.should_exit = self._server.force_exit = True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """None of these tasks may fail; if one does, a fresh process is better than one without it."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("the API process failed", exc_info=task.exception())
            os._exit(1)


class _NoProbes(logging.Filter):
    """Leaves out access-log lines of probes that went well; they come every few seconds for ever."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not (len(arguments) == 5 and arguments[2] in PROBES and arguments[4] == 200)


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: who ends this process is decided above."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def raise_file_limit() -> int:
    """Allows this process as many open files as the system lets it. Returns that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft


def run_loop(process: ApiProcess) -> None:
    """Runs it on uvloop where there is one."""
    if sys.platform != "win32":
        import uvloop  # not there on Windows

        uvloop.run(process.run())
    else:
        asyncio.run(process.run())


def main(argv: list[str] | None = None) -> int:
    """Runs the process that the supervisor started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(options.parent)
    logging.getLogger("uvicorn.access").addFilter(_NoProbes())
    control = Control.inherited(options.control_fd)
    settings = control.receive()
    if settings is None:
        return 1
    configure_logging(settings["log_format"])
    process = ApiProcess(control, settings)
    run_loop(process)
    process.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
