"""Kernels compiled in other processes: compilers keep the interpreter's lock, and a start has more to do meanwhile.

A process is started beside torch's import. It imports the compiler, then forks for each kernel that it is asked for, so that none
costs a further import and none that fails harms another. What is compiled goes into the compiler's own cache on disk, where the asking
process looks for it. The process ends when the asking one has ended, or has asked for nothing for long. Whatever goes wrong with it,
kernels are compiled where they are needed.
"""

import fcntl
import importlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from typing import IO, Any

from quire.cgroup import num_cpus

logger = logging.getLogger(__name__)

# What compiles: has prepare() and compile(**request). Only the other process imports it.
MODULE = "quire.backends.triton._compile_apart"
# The other process's path is this one's, and nothing else: no folder that it happens to be started in.
COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from quire.compilers import serve; serve(sys.argv[1])"
LEAST_CORES = 4  # with fewer, other processes would only slow the start
ANSWER_SECONDS = 30.0  # a kernel takes 0.3 to 3
CORES_LEFT = 2  # to who asks
F_SETPIPE_SZ, PIPE_BYTES = 1031, 1 << 20  # room for all requests of a start, if it is slow to read them
NICE = 5  # kernels that the asking process compiles itself take longer
IDLE_SECONDS = 120.0

Request = Mapping[str, Any]
Answer = Future[bool]


class Compilers:
    """The process that compiles, as seen from the one that asks. Any thread may ask."""

    def __init__(self, module: str = MODULE) -> None:
        # A session of its own: Ctrl-C is for the program, and the end of the program closes the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, module, *sys.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **({"PYTHONPYCACHEPREFIX": sys.pycache_prefix} if sys.pycache_prefix else {})},
        )  # fmt: skip
        self.pid = self._process.pid
        os.set_blocking(self._to_it.fileno(), False)
        with suppress(OSError):
            fcntl.fcntl(self._to_it, F_SETPIPE_SZ, PIPE_BYTES)
        self._lock = threading.Lock()
        self._answers: dict[int, Answer] = {}
        self._has_ended = False
        self._num_asked = 0
        threading.Thread(target=self._listen, name="compile-answers", daemon=True).start()

    def ask(self, request: Request) -> Answer:
        """Waits for nothing. The answer is whether it was compiled, in the order of asking as far as there are processors."""
        answer: Answer = Future()
        with self._lock:
            if self._has_ended:
                answer.set_result(False)
                return answer
            self._num_asked += 1
            self._answers[self._num_asked] = answer
            line = json.dumps([self._num_asked, request]).encode() + b"\n"
            try:
                if os.write(self._to_it.fileno(), line) < len(line):
                    raise BlockingIOError
            except OSError:  # it has ended, or takes nothing
                self._kill()
        return answer

    def wait(self, answer: Answer, seconds: float = ANSWER_SECONDS) -> bool:
        """The answer; False too when it does not come in time, and then nothing is waited for any more."""
        try:
            return answer.result(seconds)
        except NoAnswer:
            logger.warning("the process that compiles kernels was silent for %g s; they are compiled here", seconds)
            self.close()
            return False

    def close(self) -> None:
        """Ends the process, whatever it is doing. Harmless when done before."""
        with self._lock:
            if not self._has_ended:
                self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group, of what it has forked

    @property
    def _to_it(self) -> IO[bytes]:
        return self._process.stdin  # type: ignore[return-value]  # it is a pipe

    def _listen(self) -> None:
        with self._process.stdout as lines:  # type: ignore[union-attr]  # it is a pipe
            for line in lines:
                number, compiled = json.loads(line)
                self._answers.pop(number).set_result(compiled)
        with self._lock:
            self._has_ended = True
            with suppress(OSError):
                self._to_it.close()
        for answer in self._answers.values():
            answer.set_result(False)
        self._process.wait()


_started: list[Compilers] = []
os.register_at_fork(after_in_child=_started.clear)  # answers come to the one that has started it


def has_interpreter() -> bool:
    """Whether sys.executable is Python. A frozen application's is the program itself, which would run once more."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def start() -> None:
    """Begins the process, unless the machine is small, there is no Python to run or it has begun; `take` gives it."""
    if not _started and has_interpreter() and num_cpus() >= LEAST_CORES:
        _started.append(Compilers())


def take() -> Compilers | None:
    """The process that was started, for who will close it; None = there is none."""
    return _started.pop() if _started else None


def drop() -> None:
    """Ends what was started and not taken."""
    if (started := take()) is not None:
        started.close()


def serve(module: str) -> None:
    """The other process: one request a line on stdin, its number and whether it went well a line on stdout."""
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    Forks(importlib.import_module(module), answers).run()


class Forks:
    """The other process's loop.

    compiler  the module that compiles
    answers   a file descriptor
    """

    def __init__(self, compiler: Any, answers: int) -> None:
        compiler.prepare()
        self._compiler = compiler
        self._answers = answers
        self._most = max(1, num_cpus() - CORES_LEFT)
        self._queue: deque[tuple[int, Request]] = deque()
        self._running: dict[int, int] = {}  # process id -> number of the request
        self._rest = b""

    def run(self) -> None:
        """Until there is nobody to compile for."""
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ, self._read)
            selector.register(ended, selectors.EVENT_READ, lambda: self._tell(ended))
            while ready := selector.select(IDLE_SECONDS):
                for key, _ in ready:
                    key.data()
                while self._queue and len(self._running) < self._most:
                    number, request = self._queue.popleft()
                    self._running[self._fork(request)] = number

    def _read(self) -> None:
        read = os.read(0, 1 << 16)
        if not read:
            os.killpg(0, signal.SIGKILL)  # nobody is there any more: an end of this one and all that it has forked
        *lines, self._rest = (self._rest + read).split(b"\n")
        self._queue.extend((number, request) for number, request in map(json.loads, lines))

    def _fork(self, request: Request) -> int:
        if (pid := os.fork()) != 0:
            return pid
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.nice(NICE)
            self._compiler.compile(**request)
            code = 0
        finally:
            os._exit(code)  # nothing of the parent's is cleaned up twice

    def _tell(self, ended: int) -> None:
        """Says of each process that has ended how it ended."""
        os.read(ended, 4096)
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            os.write(self._answers, json.dumps([self._running.pop(pid), status == 0]).encode() + b"\n")
