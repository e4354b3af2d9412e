"""The listening socket: taken before anything slow happens, and named holder when it is taken already. Standard library only."""

import contextlib
import os
import socket
from pathlib import Path

from quire.errors import ConfigError

BACKLOG = 2048
STALLED_CLIENT_S = 60
SEND_BUFFER_BYTES = 128 * 2**10  # what may pile up in the kernel for a slow reader; its stream joins the rest
TCP_LISTEN = "0A"  # state column of /proc/net/tcp


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ConfigError that names who holds the port."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; it must be between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Connections inherit these options. The kernel closes those whose client has not taken any data for this long.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_CLIENT_S * 1000)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(_why_not(host, port, error)) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """http://host:port of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def holder_of(port: int) -> int | None:
    """Pid of the process that listens on a port, where /proc tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            inodes |= {f"socket:[{row[9]}]" for row in _rows(table) if row[3] == TCP_LISTEN and _port(row[1]) == port}
    return next((pid for pid in _pids() if inodes & _open_files(pid)), None) if inodes else None


def _why_not(host: str, port: int, error: OSError) -> str:
    pid = holder_of(port) if port else None
    if pid is not None:
        return f"port {port} is in use by process {pid} ({_name(pid)}); stop it, or choose another with --port"
    return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose another with --port or --host"


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in Path(table).read_text().splitlines()[1:]]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _pids() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _open_files(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path))
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "unknown"
