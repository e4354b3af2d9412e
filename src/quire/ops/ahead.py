"""What a call of an operator needs compiled, without the call being made.

A backend that compiles kernels has a module `_ahead` with `collect(take)`, a context manager: inside it, operators that this thread
calls launch nothing, and give `take` each kernel they call for, as a Job.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from quire.ops.registry import Choice, Ops, specs


@dataclass(frozen=True)
class Job:
    """A kernel to be compiled.

    load     compiles it, unless that has been done and kept on disk, and loads it
    request  what another process needs to know to compile it and keep it there (see quire.compilers); None = `load` does it as well
    """

    load: Callable[[], object]
    request: dict[str, Any] | None = None


Collect = Callable[[Callable[[Job], None]], AbstractContextManager[None]]


def ahead(ops: Ops, choices: list[Choice]) -> tuple[Ops, Collect] | None:
    """Operators for calls whose kernels are not launched, and what to call them inside. None = no backend of theirs compiles anything.

    Operators of backends that have no `_ahead` are replaced by the references.
    """
    used = {choice.backend for choice in choices} - {"torch"}
    collects = {name: collect for name in sorted(used) if (collect := _collect_of(name)) is not None}
    if not collects:
        return None
    known = specs()
    references = {c.op: known[c.op].reference for c in choices if c.backend not in collects and hasattr(ops, c.op)}
    return replace(ops, **references), lambda take: _all(list(collects.values()), take)


def _collect_of(backend: str) -> Collect | None:
    name = f"quire.backends.{backend}._ahead"
    return None if find_spec(name) is None else importlib.import_module(name).collect


@contextmanager
def _all(collects: list[Collect], take: Callable[[Job], None]) -> Iterator[None]:
    with ExitStack() as stack:
        for collect in collects:
            stack.enter_context(collect(take))
        yield
