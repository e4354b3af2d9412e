"""Nothing is accepted and ignored: each flag and each field of a request is read somewhere, or known to have no effect and told."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

import quire
from quire.resolve import WITHOUT_EFFECT

PACKAGE = Path(quire.__file__).parent
# Where options are defined: dataclasses whose fields are flags or parameters, and models of request bodies.
PARTS = ("quire.config", "quire.core.params", "quire.core.structured", "quire.bench", "quire.cli", "quire.server")
TABLES = ("fields.py", "bounds.py")
NO_EFFECT = {
    "EngineArgs": set(WITHOUT_EFFECT),  # the log says so
    "ServeBenchArgs": {"trust_remote_code"},  # its help says so
}


def modules() -> Iterator[str]:
    for name in PARTS:
        yield name
        found = importlib.import_module(name)
        for inner in pkgutil.walk_packages(getattr(found, "__path__", ()), f"{name}."):
            yield inner.name


def names_of(kind: type) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return list(kind.model_fields)


def is_of_users(kind: object, module: str) -> bool:
    """Whether a class holds what people write: options have a help text."""
    if not inspect.isclass(kind) or kind.__module__ != module:
        return False
    if dataclasses.is_dataclass(kind):
        return kind.__name__.endswith("Params") or any("help" in f.metadata for f in dataclasses.fields(kind))
    return issubclass(kind, BaseModel)


def kinds() -> list[type]:
    found = [
        kind for name in modules() for kind in vars(importlib.import_module(name)).values() if is_of_users(kind, name)
    ]
    assert {"EngineArgs", "ServerArgs", "ServeBenchArgs", "SamplingParams", "ChatCompletionRequest"} <= {
        k.__name__ for k in found
    }
    return found


@cache
def reads() -> dict[str, list[tuple[Path, int, bool]]]:
    """Where each name is read as an attribute (true), or stands alone in a string, as lists of names are made of (false)."""
    found: dict[str, list[tuple[Path, int, bool]]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found[node.attr].append((path, node.lineno, True))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found[node.value].append((path, node.lineno, False))
    return found


def is_read(kind: type, name: str) -> bool:
    """Whether it is read for more than a check: tables of bounds, and what the class itself says of its fields' names, do not count."""
    source, (lines, first) = Path(inspect.getsourcefile(kind) or ""), inspect.getsourcelines(kind)
    return any(
        is_attribute if path == source and first <= line < first + len(lines) else path.name not in TABLES
        for path, line, is_attribute in reads()[name]
    )


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_each_option_and_field_is_read(kind: type):
    unread = {name for name in names_of(kind) if not is_read(kind, name)}
    assert unread <= NO_EFFECT.get(kind.__name__, set()), f"accepted by {kind.__name__} and never read"


def test_options_without_effect_say_so():
    for kind in kinds():
        for name in NO_EFFECT.get(kind.__name__, ()):
            (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
            assert "accepted" in field.metadata["help"] or "no effect" in field.metadata["help"], name
