"""What the checks ask of the machine. A class, so that tests can stand for a machine that is full, locked or poor."""

import importlib.util
import os
import resource
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 2.0


class Machine:
    """This machine."""

    def free_bytes(self, path: Path) -> int:
        """Free space where a path is, or would be."""
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free

    def writable(self, path: Path) -> bool:
        """Whether files can be made in a folder, which may have to be made itself."""
        while not path.exists():
            path = path.parent
        return path.is_dir() and os.access(path, os.W_OK | os.X_OK)

    def readable(self, path: Path) -> bool:
        """Whether a file or folder may be read."""
        return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))

    def file_limit(self) -> int:
        """Open files that a process may have at most."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return 2**31 if hard == resource.RLIM_INFINITY else hard

    def has_package(self, name: str) -> bool:
        """Whether a package can be imported."""
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    def reachable(self, url: str) -> bool:
        """Whether something listens at an address."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S):
                return True
        except (OSError, ValueError):
            return False
