"""Python's bytecode of what a start imports, kept in our cache where an installation has none.

Without it Python reads the source of torch anew at each start, which takes as long as all the rest. Installers that do not compile
(uv, many container images) and PYTHONDONTWRITEBYTECODE lead there. Nothing is written beside the sources: what is missing is compiled
after a start, by other processes, into a folder of ours, and the next start is told to look there. Python itself checks each file
against its source, as ever.
"""

import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from importlib.util import cache_from_source
from pathlib import Path

WATCHED = "torch"  # stands for the installation: the largest package that a start imports
COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from quire.bytecode import compile_listed; compile_listed()"
MOST_PROCESSES = 8


def folder() -> str:
    """Where bytecode is kept."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "bytecode")


@contextmanager
def kept_apart() -> Iterator[None]:
    """Imports inside use the folder's bytecode, if the installation has none; what the folder lacks is compiled into it afterwards."""
    if sys.pycache_prefix is not None or not is_missing(WATCHED):
        yield
        return
    sys.pycache_prefix, before = folder(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # writing a thousand files is not for the start
    try:
        yield
    finally:
        prefix, sys.pycache_prefix, sys.dont_write_bytecode = sys.pycache_prefix, None, before
        with suppress(OSError):
            compile_beside(lacking(prefix))


def is_missing(package: str) -> bool:
    """Whether a package has no bytecode beside its source, and Python will write none."""
    spec = PathFinder.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    return not os.path.exists(cache_from_source(spec.origin)) and (
        sys.dont_write_bytecode or not os.access(os.path.dirname(spec.origin), os.W_OK)
    )


def lacking(prefix: str) -> list[tuple[str, str]]:
    """(source, place of its bytecode) of the modules that were imported without bytecode though looked for below `prefix`."""
    specs = (getattr(module, "__spec__", None) for module in list(sys.modules.values()))
    pairs = ((spec.origin, spec.cached) for spec in specs if spec is not None and spec.has_location and spec.cached)
    return [(source, place) for source, place in pairs if place.startswith(prefix) and not os.path.exists(place)]


def compile_beside(pairs: list[tuple[str, str]]) -> None:
    """Has them compiled by a process that nobody waits for; it takes a second or two, also when this one has ended."""
    if not pairs:
        return
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *sys.path],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with process.stdin as listed:  # type: ignore[union-attr]  # it is a pipe
        listed.write(json.dumps(pairs).encode())


def compile_listed() -> None:
    """The other process: pairs as JSON on stdin, shared by some processes."""
    os.nice(10)
    pairs = json.load(sys.stdin)
    count = max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // 2))
    share = next((i for i in range(1, count) if os.fork() == 0), 0)
    for source, place in pairs[share::count]:
        with suppress(Exception):  # it cannot be read or written: the next start does without
            py_compile.compile(source, place, quiet=2)
