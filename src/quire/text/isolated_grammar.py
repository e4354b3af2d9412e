"""Grammars of strangers, compiled in a process of their own: one that crashes the compiler, or never ends, costs its sender an answer
and nobody else anything. What was found of a constraint is remembered, so that a common schema is compiled once.

The process is started when the first constraint comes, replaced when one has ended it, and ends when this one does.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from quire.core.structured import StructuredOutputsParams
from quire.errors import EngineUnavailable, InvalidRequest
from quire.text.grammar import MAX_GRAMMAR_BYTES, CheckedGrammar, refused

log = logging.getLogger("quire.grammar")
COMMAND = (sys.executable, "-m", "quire.text.grammar_worker")
NUM_REMEMBERED = 128
MAX_QUESTION_CHARS = 6 * MAX_GRAMMAR_BYTES + 1024  # a character may take six in JSON
MAX_COMPILE_S = 3.0  # of computing, for one grammar; what takes more is refused, or ends the worker
TIMEOUT_S = 30.0  # the same by the clock, however busy the machine is
MAX_WAIT_S = 30.0  # behind others' grammars
START_TIMEOUT_S = 60.0
LENGTH_BYTES = 4


class IsolatedChecker:
    """Asks a worker process. Any number of threads may.

    folder  of the tokenizer
    """

    def __init__(
        self,
        folder: str | Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        command: Sequence[str] = COMMAND,
        timeout_s: float = TIMEOUT_S,
        max_compile_s: float = MAX_COMPILE_S,
    ) -> None:
        self._settings = {
            "folder": str(folder), "vocab_size": vocab_size, "eos_token_ids": list(eos_token_ids), "max_compile_s": max_compile_s,
        }  # fmt: skip
        self._command = command
        self._timeout_s = timeout_s
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._remembered = functools.lru_cache(maxsize=NUM_REMEMBERED)(self._ask)

    def checked(self, params: StructuredOutputsParams) -> CheckedGrammar:
        """The grammar of a constraint. Raises InvalidRequest, or EngineUnavailable when no process can be started."""
        try:
            question = json.dumps(asdict(params))
        except (ValueError, TypeError, RecursionError) as error:
            raise refused(f"the constraint is not plain JSON: {error}") from None
        if len(question) > MAX_QUESTION_CHARS:
            raise refused(f"it is longer than {MAX_GRAMMAR_BYTES} bytes")
        answer = self._remembered(question)
        if "error" in answer:
            raise InvalidRequest(answer["error"], answer["param"])
        return CheckedGrammar(answer["text"], answer["num_closing"])

    def close(self) -> None:
        """Ends the worker. The next question starts another."""
        with self._lock:
            self._end()

    def _ask(self, question: str) -> dict[str, Any]:
        if not self._lock.acquire(timeout=MAX_WAIT_S):
            raise EngineUnavailable("too many grammars wait to be compiled; try again")
        try:
            answer = self._answer(question.encode())
        finally:
            self._lock.release()
        if answer is not None:
            return answer
        error = refused("it is too hard for the compiler, which did not survive it or took too long")
        return {"error": str(error), "param": error.param}

    def _answer(self, question: bytes) -> dict[str, Any] | None:
        """None: the worker did not survive it. One that had died before is not held against the question."""
        for _ in range(2):
            fresh = self._worker is None or self._worker.poll() is not None
            worker = self._start() if fresh or self._worker is None else self._worker
            began = time.monotonic()
            answer = _exchange(worker, question, self._timeout_s)
            if answer is not None:
                return answer
            self._end()
            log.error("the process that compiles grammars ended (%s) on one of them", worker.returncode)
            if fresh or worker.returncode == -signal.SIGXCPU or time.monotonic() - began >= self._timeout_s:
                break
        return None

    def _start(self) -> "subprocess.Popen[bytes]":
        self._end()
        try:
            worker = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor
            )  # fmt: skip
        except OSError as error:
            raise EngineUnavailable(
                f"no process can be started to compile grammars: {os.strerror(error.errno or 0)}"
            ) from None
        self._worker = worker
        if _exchange(worker, json.dumps(self._settings).encode(), START_TIMEOUT_S) is None:
            self._end()
            raise EngineUnavailable("the process that compiles grammars does not start")
        return worker

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._end()


def _exchange(worker: "subprocess.Popen[bytes]", question: bytes, timeout_s: float) -> dict[str, Any] | None:
    """The worker's answer; None if it has none, or not within that time: then it is dead."""
    if worker.stdin is None or worker.stdout is None:
        return None
    alarm = threading.Timer(timeout_s, worker.kill)
    alarm.start()
    try:
        write_frame(worker.stdin, question)
        answer = read_frame(worker.stdout)
    except OSError:
        return None
    finally:
        alarm.cancel()
    found: dict[str, Any] | None = None if answer is None else json.loads(answer)
    return found


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Length and body. Raises OSError when the other side is gone."""
    stream.write(len(body).to_bytes(LENGTH_BYTES, "big") + body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next body; None when the other side is gone."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    wanted = int.from_bytes(length, "big")
    body = stream.read(wanted)
    return body if len(body) == wanted else None
