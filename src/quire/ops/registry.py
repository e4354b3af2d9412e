"""Finds the operators and their backends by folder, and picks one implementation of each, once, at start-up.

An operator is a module of `quire.ops` with a SPEC. A backend is a folder of `quire/backends`; each of its modules declares

    IMPLEMENTS = "rms_norm"                      the operator's name
    def why_not() -> list[str]: ...              reasons why it cannot run on this machine; empty = it can
    def run(...)                                 the operator's signature

A module's top level imports no vendor package, so that a scan never fails on a machine that lacks it.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

from torch import Tensor

import quire.backends
import quire.ops
from quire.errors import ConfigError
from quire.ops.contract import OpSpec


@dataclass(frozen=True)
class Ops:
    """The chosen implementation of each operator that layers or the runner call; layers get it when built. Signatures: the op's file."""

    linear: Callable[..., Tensor]
    linear_silu_mul: Callable[..., Tensor]
    embedding: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    layer_norm: Callable[..., Tensor]
    rotary_write_kv: Callable[..., tuple[Tensor, Tensor]]
    write_kv: Callable[..., None]
    paged_attention: Callable[..., Tensor]
    rotary_attention: Callable[..., Tensor]
    greedy: Callable[..., Tensor]
    linear_greedy: Callable[..., Tensor]
    draw_tokens: Callable[..., Tensor]
    place_tokens: Callable[..., None]
    take_tokens: Callable[..., None]
    sample_tokens: Callable[..., Tensor]
    count_tokens: Callable[..., None]
    decode_step: Callable[..., Tensor | None]
    decode_layers: Callable[..., Tensor | None]


@dataclass(frozen=True)
class Choice:
    """Which backend an operator got, and why each other was refused; `quire env` prints these."""

    op: str
    backend: str
    refused: dict[str, list[str]] = field(default_factory=dict)


def specs() -> dict[str, OpSpec]:
    """Every operator's contract, by name."""
    found = {}
    for info in pkgutil.iter_modules(quire.ops.__path__):
        spec = getattr(importlib.import_module(f"quire.ops.{info.name}"), "SPEC", None)
        if spec is not None:
            found[spec.name] = spec
    return found


def implementations(backend: str) -> dict[str, ModuleType]:
    """Modules of one backend folder that implement an operator, by the operator's name."""
    package = importlib.import_module(f"quire.backends.{backend}")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"quire.backends.{backend}.{info.name}")
        if hasattr(module, "IMPLEMENTS"):
            found[module.IMPLEMENTS] = module
    return found


def backend_names() -> list[str]:
    """Folders of quire/backends, plus "torch" (the references)."""
    return ["torch", *sorted(info.name for info in pkgutil.iter_modules(quire.backends.__path__) if info.ispkg)]


def resolve(preference: tuple[str, ...]) -> tuple[Ops, list[Choice]]:
    """Picks for each operator the first backend of `preference` that can run it; "torch" is always the last resort.

    Raises ConfigError when `preference` names a backend that does not exist.
    """
    unknown = [name for name in preference if name not in backend_names()]
    if unknown:
        raise ConfigError(f"no backend named {unknown[0]!r}; there are {', '.join(backend_names())}")
    modules = {name: implementations(name) for name in preference if name != "torch"}
    chosen: dict[str, Callable[..., Any]] = {}
    choices = []
    for name, spec in specs().items():
        run, choice = _choose(spec, preference, modules)
        chosen[name] = run
        choices.append(choice)
    return Ops(**{f.name: chosen[f.name] for f in fields(Ops)}), choices


def _choose(
    spec: OpSpec, preference: tuple[str, ...], modules: dict[str, dict[str, ModuleType]]
) -> tuple[Callable[..., Any], Choice]:
    refused: dict[str, list[str]] = {}
    for backend in preference:
        if backend == "torch":
            break
        module = modules[backend].get(spec.name)
        reasons = ["has no implementation"] if module is None else module.why_not()
        if module is not None and not reasons:
            return module.run, Choice(spec.name, backend, refused)
        refused[backend] = reasons
    return spec.reference, Choice(spec.name, "torch", refused)
