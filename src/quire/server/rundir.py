"""The run directory: private to one server, holds its UNIX socket, swept by the next server if this one could not. Stdlib only."""

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108, on macOS 104
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def create() -> Path:
    """A fresh directory of mode 0700, named by user, boot, pid and chance; older ones of dead servers are removed."""
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_SOCKET_PATH_BYTES - 60:
        base = Path("/tmp")
    sweep(base)
    path = base / f"{_prefix()}-{boot_id()}-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir(mode=0o700)
    return path


def remove(path: Path) -> None:
    """Takes it away with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)


def sweep(base: Path) -> None:
    """Removes directories of this user's servers that are dead: of another boot, or whose pid is gone."""
    for path in base.glob(f"{_prefix()}-*-*-*"):
        boot, pid = path.name.split("-")[2:4]
        if boot != boot_id() or not _alive(pid):
            remove(path)


def boot_id() -> str:
    """Eight characters that change with each boot; "noboot" where the system has none."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text()[:8]
    return "noboot"


def _prefix() -> str:
    return f"quire-{os.getuid()}"


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
