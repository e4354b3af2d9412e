"""CUDA C++ to machine code: by NVRTC, the compiler library that torch brings along, once a source; kept on disk from then on."""

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

OPTIONS = (b"--gpu-architecture=sm_90a", b"--std=c++17")


class CompileError(RuntimeError):
    """The compiler refused a source; its words."""


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC, None where there is none. Torch's wheels keep it in a package of its own, beside torch."""
    major = (torch.version.cuda or "").split(".")[0]
    folders = Path(torch.__file__).parents[1].joinpath("nvidia").glob("*/lib")
    for path in (f"libnvrtc.so.{major}", *(str(folder / f"libnvrtc.so.{major}") for folder in folders)):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def compiled(source: str) -> bytes:
    """Machine code of `source` for sm_90a, from the disk where it has been compiled before. CompileError when it does not compile."""
    nvrtc = library()
    if nvrtc is None:
        raise CompileError("libnvrtc is not there")
    file = _folder() / f"{_digest(nvrtc, source)}.cubin"
    try:
        return file.read_bytes()
    except OSError:
        code = _compile(nvrtc, source)
        _keep(file, code)
        return code


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "kernels"


def _digest(nvrtc: ctypes.CDLL, source: str) -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return hashlib.sha256(f"{major.value}.{minor.value} {OPTIONS} {source}".encode()).hexdigest()[:32]


def _keep(file: Path, code: bytes) -> None:
    """Writes the file whole or not at all; a disk that cannot be written costs a compilation at the next start, no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            part.write(code)
        os.replace(part.name, file)
    except OSError:
        return


def _compile(nvrtc: ctypes.CDLL, source: str) -> bytes:
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        options = (ctypes.c_char_p * len(OPTIONS))(*OPTIONS)
        if nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options):
            raise CompileError(_read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode())
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(get_size: Callable[..., int], get: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw
