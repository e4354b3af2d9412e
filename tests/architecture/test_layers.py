"""The house rules that a reader relies on: who may import whom, what stays free of torch, what is never used."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SRC / "quire"

# Higher index = higher layer. A file may import its own layer's package, and any lower layer; `|` siblings share a level.
LEVELS: list[set[str]] = [
    {"errors", "env", "log", "version", "config", "hf_config", "resolve"}
    | {"bytecode", "caches", "cgroup", "compilers", "head_start"},
    {"core"},
    {"platform", "parallel", "text", "hub", "outputs", "legacy"},
    {"ops"},
    {"quant"},
    {"layers"},
    {"weights"},
    {"models"},
    {"runner"},
    {"setup"},
    {"engine"},
    {"llm", "async_llm", "beam_search", "server", "bench"},
    {"cli", "__init__"},
    {"__main__"},
]
SIBLINGS_MAY_IMPORT = {
    ("llm", "beam_search"),
    ("async_llm", "llm"),
    ("text", "hub"),
    ("hub", "text"),
    ("server", "llm"),
}
TORCH_FREE = ["errors", "env", "log", "caches", "cgroup", "bytecode", "compilers", "head_start", "version", "config", "hf_config", "resolve", "core", "text", "hub", "server", "bench", "cli",
              "outputs", "llm", "async_llm", "beam_search"]  # fmt: skip
TORCH_FREE_FILES = ["engine/client.py", "engine/ipc.py", "engine/frontend.py"]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, is function-local) of each import in the file; TYPE_CHECKING blocks count too."""
    tree = ast.parse(path.read_text())
    local = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in local
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in local


def level_of(part: str) -> int | None:
    return next((i for i, names in enumerate(LEVELS) if part in names), None)


def test_every_part_has_a_level():
    unknown = {part_of(p) for p in files()} - set().union(*LEVELS) - {"backends", "_builtin"}
    assert not unknown, f"give these a place in LEVELS and in ARCHITECTURE.md: {sorted(unknown)}"


def test_imports_go_downward():
    wrong = []
    for path in files():
        part = part_of(path)
        for module, line, _ in imports(path):
            if not module.startswith("quire."):
                continue
            target = module.split(".")[1]
            if target == "backends" and part not in ("backends", "ops"):
                wrong.append(f"{path.relative_to(SRC)}:{line} imports a backend")
            if part == "backends":
                if target not in ("backends", "ops", "platform", "errors", "caches"):
                    wrong.append(f"{path.relative_to(SRC)}:{line} backends may not import {target}")
                continue
            mine, its = level_of(part), level_of(target)
            if mine is None or its is None or part == target or (part, target) in SIBLINGS_MAY_IMPORT:
                continue
            if its > mine or (its == mine and mine != 0):
                wrong.append(f"{path.relative_to(SRC)}:{line} ({part}) imports {target}")
    assert not wrong, "\n".join(wrong)


def test_torch_free_parts_import_without_torch():
    """Imports every torch-free module in a fresh interpreter where importing torch fails."""
    modules = []
    for path in files():
        relative = path.relative_to(PACKAGE)
        if relative.name == "__main__.py":
            continue
        if part_of(path) in TORCH_FREE or str(relative) in TORCH_FREE_FILES:
            modules.append("quire." + ".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'triton'):\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib\n"
        f"for name in {['quire', *modules]!r}:\n"
        "    importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SRC)}
    )
    assert result.returncode == 0, result.stderr


def test_import_quire_is_light():
    """`import quire` and naming LLM load neither torch nor anything that initialises a GPU."""
    code = "import sys, quire; quire.LLM; quire.SamplingParams; print(sorted(m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SRC)}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_torch_cuda_stays_in_platform_and_backends():
    wrong = []
    for path in files():
        if part_of(path) in ("platform", "backends"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda."):
                wrong.append(f"{path.relative_to(SRC)}:{node.lineno} {ast.unparse(node)}")
    allowed = [
        w for w in wrong if w.startswith("quire/runner/graphs.py")
    ]  # capture is a runner's business; the facts are not
    assert wrong == allowed, "\n".join(wrong)


def test_no_code_from_data():
    """No pickle, eval or exec anywhere; torch.load in one file only."""
    wrong = []
    for path in files():
        wrong += [
            f"{path.relative_to(SRC)}:{line} {m}"
            for m, line, _ in imports(path)
            if m.split(".")[0] in FORBIDDEN_MODULES and m != "pickle.UnpicklingError"
        ]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                wrong.append(f"{path.relative_to(SRC)}:{node.lineno} {node.func.id}()")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if part_of(path) != "weights" or not weights_only:
                    wrong.append(f"{path.relative_to(SRC)}:{node.lineno} torch.load")
    assert not wrong, "\n".join(wrong)


def test_no_globals_and_no_asserts_in_src():
    wrong = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Global | ast.Assert):
                wrong.append(f"{path.relative_to(SRC)}:{node.lineno} {type(node).__name__.lower()}")
    assert not wrong, "\n".join(wrong)


def test_core_is_pure():
    """core: no clock, no randomness, no I/O, no torch."""
    forbidden = {
        "time",
        "datetime",
        "random",
        "secrets",
        "torch",
        "numpy",
        "os",
        "socket",
        "threading",
        "asyncio",
        "logging",
    }
    wrong = [
        f"{path.relative_to(SRC)}:{line} {module}"
        for path in (PACKAGE / "core").rglob("*.py")
        for module, line, _ in imports(path)
        if module.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_model_files_name_no_machinery():
    wrong = []
    for path in (PACKAGE / "models").rglob("*.py"):
        if path.name in ("__init__.py", "registry.py"):
            continue
        for module, line, _ in imports(path):
            if module.startswith(
                ("quire.backends", "quire.platform", "quire.parallel", "quire.runner", "quire.engine")
            ):
                wrong.append(f"{path.relative_to(SRC)}:{line} {module}")
            if module.startswith("quire.ops") and not module.startswith("quire.ops.forward_batch"):
                wrong.append(f"{path.relative_to(SRC)}:{line} {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SRC)))
def test_every_file_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{path.relative_to(SRC)} has no module docstring"
