"""Triton's compiler in a process of its own (quire.compilers), which neither imports torch nor touches a device."""

import importlib
import json
from contextlib import suppress
from threading import Thread
from typing import Any

import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils  # type: ignore[import-untyped]
from triton.compiler import ASTSource, make_backend  # type: ignore[import-untyped]
from triton.language import constexpr, dtype  # type: ignore[import-untyped]
from triton.runtime.cache import triton_key  # type: ignore[import-untyped]


def prepare() -> None:
    """What all kernels need: the key of Triton's cache, a hash over all of it, and the C functions that launch kernels."""
    triton_key()
    with suppress(Exception):  # no C compiler: who launches will say so
        CudaUtils()


def compile(module: str, function: str, asked: str, target: list[Any]) -> None:
    """Puts a kernel into Triton's cache, and the C function that launches it.

    function  the kernel's name in `module`
    asked     what it is compiled for, as Triton itself writes it down for its own use (specialization data)
    target    kind of device, its architecture, threads of a warp
    """
    kernel, data = getattr(importlib.import_module(module), function), json.loads(asked)
    source = ASTSource(
        kernel, {name: _tuples(kind) for name, kind in data["signature"].items()}, _constants(data),
        dict(zip(map(tuple, data["attrs_keys"]), data["attrs_vals"], strict=True)),
    )  # fmt: skip
    launcher = Thread(target=_build_launcher, args=(source,))
    launcher.start()
    to = GPUTarget(*target)
    options = make_backend(to).parse_options({name: _tuples(value) for name, value in data["options"].items()})
    triton.compile(source, target=to, options=options.__dict__)
    launcher.join()


def _build_launcher(source: ASTSource) -> None:
    """The C function: a C compiler's work, beside the kernel's."""
    with suppress(AttributeError):  # what it wants of the kernel's metadata comes after the C function is kept
        CudaLauncher(source, None)


def _constants(data: dict[str, Any]) -> dict[tuple[int, ...], Any]:
    return {
        tuple(key): _constant(value) for key, value in zip(data["constant_keys"], data["constant_vals"], strict=True)
    }


def _constant(value: Any) -> Any:
    if isinstance(value, dict):
        return constexpr(value["constexpr"])
    return dtype(value) if isinstance(value, str) and dtype.is_dtype(value) else value


def _tuples(value: Any) -> Any:
    """JSON knows lists alone."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
