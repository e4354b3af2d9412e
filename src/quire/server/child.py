"""A child process of the supervisor, with its control channel. Standard library only."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from quire.engine.lifeline import Control

log = logging.getLogger("quire.supervisor")


class Child:
    """One started process. It is a new program (no fork of a threaded process) in a session of its own, so that Ctrl-C in the
    terminal reaches the supervisor alone.

    settings  the first message it gets; secrets go this way, never by arguments
    fds       file descriptors that it inherits beside the control channel
    """

    def __init__(self, name: str, command: Sequence[str], settings: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        self.control = Control(ours)
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())],
                pass_fds=[theirs.fileno(), *fds],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.fault: str | None = None
        self.control.send(**settings)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def how_it_ended(self) -> str:
        """In words, for the log."""
        code = self.process.returncode
        if code is None or code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def kill(self) -> None:
        """Ends it now, waits until it is gone, and closes its channel."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.control.sock.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended by itself within that time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def _environment() -> dict[str, str]:
    """Ours. `python -m` puts the current folder before all others, where a user's torch.py would be found first: unless we were
    started that way ourselves, children leave it out (Python 3.11 and later)."""
    safe = sys.path[0] not in ("", os.getcwd())
    return {**os.environ, "PYTHONSAFEPATH": "1"} if safe else dict(os.environ)
