"""Ties a child process to the supervisor: a control channel of JSON lines, and no way to outlive it. Standard library only."""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


class Control:
    """One end of the channel between supervisor and child: JSON objects, one a line. `buffer` holds a line not yet whole."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    @classmethod
    def inherited(cls, fd: int) -> "Control":
        """The child's end, from the file descriptor that it was started with."""
        return cls(socket.socket(fileno=fd))

    def send(self, **message: Any) -> None:
        """Sends one object; a peer that is gone is no error, its end is noticed elsewhere."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> dict[str, Any] | None:
        """Waits for the next object; None when the peer is gone."""
        while b"\n" not in self._buffer:
            if not self._fill():
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def receive_ready(self) -> list[dict[str, Any]] | None:
        """Objects that are there after one read; None when the peer is gone. For use with a selector."""
        if not self._fill():
            return None
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def _fill(self) -> bool:
        try:
            part = self.sock.recv(65536)
        except OSError:
            return False
        self._buffer += part
        return bool(part)


def die_with_parent(parent_pid: int) -> None:
    """From now on this process is killed when its parent dies. Linux does it; elsewhere the control channel's end must serve."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def follow(control: Control, handle: Callable[[dict[str, Any]], None]) -> None:
    """Hands the supervisor's messages to `handle` in a thread; ends this process when the supervisor is gone."""

    def loop() -> None:
        while (message := control.receive()) is not None:
            handle(message)
        os._exit(1)

    threading.Thread(target=loop, name="supervisor", daemon=True).start()
