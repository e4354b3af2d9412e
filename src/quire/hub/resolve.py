"""resolve_model: from what the user calls a model to a local folder that holds it."""

import importlib.resources
import re
from pathlib import Path

from quire.config import BUILTIN_PREFIX
from quire.errors import HubError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?\Z")


def resolve_model(
    name: str,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
    load_format: str = "auto",
) -> Path:
    """The local folder of a model; downloads it if it has to.

    name          builtin:tiny, a folder, or a name on the hub
    revision      branch, tag or commit on the hub
    download_dir  where downloads go; default: the hub's own cache
    load_format   "pt" fetches pickle weights too; "dummy" fetches no weights
    Raises HubError: no such folder, or it cannot be downloaded; the message names the ways out.
    """
    if name.startswith(BUILTIN_PREFIX):
        return _builtin(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if _looks_like_path(name):
        what = "is a file, not a folder" if folder.is_file() else "no such folder"
        raise HubError(f"model {name!r}: {what}")
    raise HubError(f"model {name!r}: no such folder")


def _builtin(name: str) -> Path:
    root = Path(str(importlib.resources.files("quire"))) / "_builtin"
    folder = root / name.removeprefix(BUILTIN_PREFIX)
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if folder.name not in names or folder.parent != root:
        raise HubError(f"model {name!r}: bundled models are {', '.join(BUILTIN_PREFIX + n for n in names) or 'none'}")
    return folder


def _looks_like_path(name: str) -> bool:
    """True for what cannot be a hub name: ./model, ~/model, /models/qwen, models\\qwen, a/b/c."""
    return _HUB_NAME.match(name) is None
