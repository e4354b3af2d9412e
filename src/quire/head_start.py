"""A head start for an engine: what its start needs besides torch is done beside torch's import, which keeps one core busy for seconds.

On a machine with an NVIDIA driver, one thread makes the device's context and another imports Triton and computes the key of its cache
(a hash over all of it), and a process gets ready to compile kernels (quire.compilers). The garbage collector rests meanwhile: it
would go through torch's many lasting objects again and again; and bytecode that the installation lacks is taken from our cache.
"""

import contextlib
import ctypes
import gc
import importlib
import threading
from collections.abc import Callable, Iterator

from quire import bytecode, compilers


@contextlib.contextmanager
def head_start(device: str | None) -> Iterator[None]:
    """Around the import of torch and the making of an engine.

    device  as in EngineArgs: for "cpu" nothing of a GPU is touched. None: not known yet, so no context is made
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with bytecode.kept_apart():
            _begin(device)
            yield
    finally:
        if collecting:
            gc.enable()
        if device is not None:  # what was made here has taken it, or failed
            compilers.drop()


def _begin(device: str | None) -> None:
    driver = None if device == "cpu" else _driver()
    if driver is None:
        return
    with contextlib.suppress(OSError):
        compilers.start()
    _beside(_prepare_triton)
    if device is not None:
        _beside(lambda: _make_context(driver))


def _beside(work: Callable[[], None]) -> None:
    """In a thread. Whatever cannot be done there is done, and complained of, where it is needed."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly, name="head-start").start()


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _make_context(driver: ctypes.CDLL) -> None:
    """Of the first visible device, the one that torch will use."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def _prepare_triton() -> None:
    importlib.import_module("triton")
    importlib.import_module("triton.runtime.cache").triton_key()  # kept by its own cache
