"""Kernels are compiled before their first launch: several at a time, while weights are read.

A call of an operator says all that a compilation depends on: dtypes, sizes, alignment. While `collect` is on, launches from its
thread do nothing else than say it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Job = Callable[[], None]


class _Shelf:
    """Compiled kernels, not to be found by launches before `open`: what is found is launched, by the collecting thread too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[dict[Any, Any], Any, Any]] | None = []

    def put(self, cache: dict[Any, Any], key: Any, kernel: Any) -> None:
        with self._lock:
            if self._waiting is None:
                cache.setdefault(key, kernel)
            else:
                self._waiting.append((cache, key, kernel))

    def open(self) -> None:
        with self._lock:
            for cache, key, kernel in self._waiting or ():
                cache.setdefault(key, kernel)
            self._waiting = None


@contextmanager
def collect(take: Callable[[Job], None]) -> Iterator[None]:
    """Kernels that this thread calls for are given to `take`, each once, as something that compiles and loads it; none is launched.

    Other threads launch as ever, and find what has been compiled once this is over.
    """
    from triton import knobs  # type: ignore[import-untyped]  # it has no stubs

    collecting, seen, shelf = threading.get_ident(), set(), _Shelf()

    def hook(*, key: Any, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if threading.get_ident() != collecting:
            return False
        if (fn.module, fn.name, key) not in seen:
            seen.add((fn.module, fn.name, key))
            take(lambda: _compile(fn.jit_function, key, compile, shelf))
        return True

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = hook
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before
        shelf.open()


def _compile(function: Any, key: Any, asked: dict[str, Any], shelf: _Shelf) -> None:
    """What the first launch would do, save the launch. A kernel is shelved when it is loaded and can be launched at once."""
    cache, _, target, backend, _ = function.device_caches[asked["device"]]
    options = json.loads(asked["specialization_data"])["options"]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    source = function.ASTSource(function, asked["signature"], asked["constants"], asked["configs"][0])
    kernel = function.compile(source, target=target, options=backend.parse_options(options).__dict__)
    kernel.run  # noqa: B018  # loads the machine code, and builds the C function that launches it
    shelf.put(cache, key, kernel)
