"""Kernels are compiled before their first launch, while weights are read: see quire.ops.ahead."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quire.ops.ahead import Job


class _Here(threading.local):
    """What this thread's kernels are given to; None = they are launched."""

    take: Callable[[Job], None] | None = None


_here = _Here()


@contextmanager
def collect(take: Callable[[Job], None]) -> Iterator[None]:
    """Kernels that this thread calls for are given to `take`; none is launched."""
    _here.take = take
    try:
        yield
    finally:
        _here.take = None


def is_collecting() -> bool:
    """Whether this thread's kernels are only collected."""
    return _here.take is not None


def take(job: Callable[[], object]) -> None:
    """Hands over what compiles a kernel."""
    if _here.take is not None:
        _here.take(Job(job))
