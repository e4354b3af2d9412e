"""NVRTC through ctypes: CUDA C++ to machine code, kept on disk for the next start."""

import ctypes
import hashlib
import logging
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from quire import caches

logger = logging.getLogger(__name__)

KERNELS = Path(__file__).parent / "kernels"
_locks: dict[str, threading.Lock] = {}  # of kernels, by their keys


def library_path() -> str | None:
    """NVRTC of torch's CUDA version, from the package that torch's wheels ask for, or from where the system's loader finds it."""
    major = (torch.version.cuda or "0").split(".")[0]
    name = f"libnvrtc.so.{major}"
    for folder in sys.path:
        found = sorted(Path(folder or ".").glob(f"nvidia/*/lib/{name}"))
        if found:
            return str(found[0])
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return name


def why_not(least: tuple[int, int], below: tuple[int, int] | None = None) -> list[str]:
    """Reasons why kernels made for compute capabilities from `least` on (and `below` another) cannot run here; empty = they can."""
    if not torch.cuda.is_available():
        return ["no CUDA device is visible"]
    found = torch.cuda.get_device_capability()
    if found < least or (below is not None and found >= below):
        and_above = "" if below else " and above"
        return [f"compute capability is {found[0]}.{found[1]}; it is made for {least[0]}.{least[1]}{and_above}"]
    return [] if library_path() else ["NVRTC, CUDA's run-time compiler, is not installed"]


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise RuntimeError("NVRTC, CUDA's run-time compiler, is not installed")
    return ctypes.CDLL(path)


def compile_kernel(source: str, macros: Mapping[str, str | int], architecture: str) -> bytes:
    """Machine code of a file of `kernels` with these macros, for `architecture` ("sm_90a")."""
    options = ["--std=c++17", f"--gpu-architecture={architecture}", *(f"-D{k}={v}" for k, v in macros.items())]
    headers = {path.name: path.read_bytes() for path in sorted(KERNELS.glob("*.cuh"))}
    text = (KERNELS / source).read_bytes()
    key = hashlib.sha256(repr((_version(), options, text, headers)).encode()).hexdigest()
    with _locks.setdefault(key, threading.Lock()):  # who comes while it is being compiled waits, and finds it
        folder = caches.code_folder("kernels")
        kept = None if folder is None else folder / f"{key}.cubin"
        if kept is not None and (found := caches.read(kept)) is not None:
            return found
        start = time.perf_counter()
        image = _compile(source, text, headers, options)
        logger.info("Compiled %s in %.2f seconds", source, time.perf_counter() - start)
        if kept is not None:
            _keep(kept, image)
        return image


def _version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
    return major.value, minor.value


def _compile(name: str, text: bytes, headers: dict[str, bytes], options: list[str]) -> bytes:
    nvrtc, program = _library(), ctypes.c_void_p()
    names = (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers))
    bodies = (ctypes.c_char_p * len(headers))(*headers.values())
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), len(headers), bodies, names)
    _check(code, "program")
    try:
        flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), flags):
            raise RuntimeError(f"{name} does not compile:\n{_read(program, 'ProgramLog').decode(errors='replace')}")
        return _read(program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _keep(path: Path, image: bytes) -> None:
    """A folder that cannot be written costs a compilation at each start."""
    try:
        caches.keep(path, image)
    except OSError as error:
        logger.warning("Compiled kernels cannot be kept in %s: %s", path.parent, error)


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"NVRTC: {what}: error {code}")
