"""Kernels are compiled before their first launch: several at a time, while weights are read.

A call of an operator says all that a compilation depends on: dtypes, sizes, alignment. While `collect` is on, launches from its
thread do nothing else than say it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quire.ops.ahead import Job

_one_at_a_time = threading.Lock()


@contextmanager
def collect(take: Callable[[Job], None]) -> Iterator[None]:
    """Kernels that this thread calls for are given to `take`, each once; none is launched, not even one that was compiled long ago.
    Other threads launch as ever, and find what has been compiled."""
    from triton import knobs  # type: ignore[import-untyped]  # it has no stubs
    from triton.runtime.jit import JITFunction  # type: ignore[import-untyped]

    collecting, seen = threading.get_ident(), set()

    def hook(*, key: Any, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if threading.get_ident() != collecting:
            return False
        if (fn.module, fn.name, key) not in seen:
            seen.add((fn.module, fn.name, key))
            take(Job(lambda: _compile(fn.jit_function, key, compile), _request(fn.jit_function, compile)))
        return True

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=warmup or threading.get_ident() == collecting, **named)

    with _one_at_a_time:
        launch, before = JITFunction.run, knobs.runtime.jit_cache_hook
        JITFunction.run, knobs.runtime.jit_cache_hook = run, hook
        try:
            yield
        finally:
            JITFunction.run, knobs.runtime.jit_cache_hook = launch, before


def _request(function: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """For _compile_apart.compile."""
    target = function.device_caches[asked["device"]][2]
    return {
        "module": function.module,
        "function": function.__name__,
        "asked": asked["specialization_data"],
        "target": [target.backend, target.arch, target.warp_size],
    }


def _compile(function: Any, key: Any, asked: dict[str, Any]) -> None:
    """What the first launch would do, save the launch. Launches find the kernel when it is loaded, and no earlier."""
    cache, _, target, backend, _ = function.device_caches[asked["device"]]
    options = json.loads(asked["specialization_data"])["options"]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    source = function.ASTSource(function, asked["signature"], asked["constants"], asked["configs"][0])
    kernel = function.compile(source, target=target, options=backend.parse_options(options).__dict__)
    kernel.run  # noqa: B018  # loads the machine code, and builds the C function that launches it
    cache.setdefault(key, kernel)
