"""Finds and loads libquire.cpu.so, the kernels of csrc/cpu, through ctypes.

An operator of the library takes one struct of 64-bit fields, packed here with one struct.pack: a ctypes signature of a dozen
arguments would cost three times as much as the smallest kernels. Calls release the GIL.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from quire.errors import QuireError, ServerError, UnsupportedShape

ABI_VERSION = 2  # kAbiVersion of csrc/cpu/api.cpp
LIBRARY = Path(__file__).with_name("libquire.cpu.so")
REBUILD = "install quire again with a C++ compiler at hand"
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
STATUS_ERRORS: dict[int, tuple[type[QuireError], str]] = {
    1: (UnsupportedShape, "a shape or stride that the CPU kernel does not take"),
    2: (ServerError, "out of memory for the CPU kernel's scratch space; use a smaller --max-num-batched-tokens"),
    3: (ServerError, "an id, slot, position or block number points outside its table"),
}

Operator = Callable[[bytes], int]


@dataclass(frozen=True)
class Library:
    """The loaded library, or why there is none."""

    handle: ctypes.CDLL | None
    problem: str = ""


@lru_cache(maxsize=1)
def library() -> Library:
    """Loads the library once, and gives its pool as many threads as torch has (OMP_NUM_THREADS, or the cores)."""
    if not LIBRARY.exists():
        return Library(None, f"{LIBRARY.name} was not built; {REBUILD}")
    try:
        handle = ctypes.CDLL(str(LIBRARY))
        version = handle.quire_abi_version()
    except (OSError, AttributeError) as error:
        return Library(None, f"{LIBRARY.name} does not load ({error}); {REBUILD}")
    if version != ABI_VERSION:
        return Library(None, f"{LIBRARY.name} has interface {version}, this quire needs {ABI_VERSION}; {REBUILD}")
    handle.quire_isa.restype = ctypes.c_char_p
    handle.quire_supported_isa.restype = ctypes.c_char_p
    handle.quire_set_num_threads(torch.get_num_threads())
    return Library(handle)


def why_not() -> list[str]:
    """Reasons why the library cannot be used; empty = it can."""
    problem = library().problem
    return [problem] if problem else []


def operator(name: str) -> Operator:
    """The library's function `name`, which takes one packed struct and returns a status; for check().

    Where there is no library, a function that says so.
    """
    handle = library().handle
    if handle is None:
        return _missing
    function = getattr(handle, name)
    function.argtypes = [ctypes.c_char_p]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def packer(fields: str) -> Callable[..., bytes]:
    """Packs a struct of csrc/cpu/arguments.h: "q" for a pointer or integer, "d" for a double."""
    return struct.Struct("=" + fields).pack


def error(status: int, op: str) -> QuireError:
    """The error that a status other than 0 stands for."""
    kind, text = STATUS_ERRORS.get(status, (ServerError, f"status {status}"))
    return kind(f"{op}: {text}")


def isa() -> str:
    """Instruction set in use, such as "avx512bf16"; empty without the library."""
    handle = library().handle
    return handle.quire_isa().decode() if handle else ""


def supported_isas() -> list[str]:
    """Instruction sets that this CPU can run, best first; any of them suits use_isa()."""
    handle = library().handle
    names: list[str] = []
    while handle and (name := handle.quire_supported_isa(len(names))):
        names.append(name.decode())
    return names


def use_isa(name: str) -> None:
    """Chooses the kernels of one instruction set, for tests and benchmarks. Raises ValueError when this CPU lacks it."""
    handle = library().handle
    if handle is None or handle.quire_use_isa(name.encode()):
        raise ValueError(f"instruction set {name!r} is not one of {', '.join(supported_isas()) or 'none'}")


def num_threads() -> int:
    """Threads of the pool, the caller's included; 0 without the library."""
    handle = library().handle
    return int(handle.quire_get_num_threads()) if handle else 0


def set_num_threads(count: int) -> None:
    """Sets the threads of the pool, the caller's included. Results do not depend on it."""
    handle = library().handle
    if count < 1:
        raise ValueError(f"a pool needs at least one thread, not {count}")
    if handle is not None and handle.quire_set_num_threads(count):
        raise ServerError(f"the CPU kernels cannot have {count} threads")


def _missing(_: bytes) -> int:
    raise ServerError(library().problem)
