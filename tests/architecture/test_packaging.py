"""What an installation brings: every package that is imported is asked for, no development tool is, and the wheel is whole and small."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown import ROOT

PACKAGE = ROOT / "src" / "quire"
WHEEL_LIMIT_BYTES = 25_000_000
DEV_FOLDERS = ("tests", "benchmarks", "training", "examples", "scripts")
CLIENTS = ROOT / "tests" / "clients"  # the folders in it are programs for environments of their own
PEERS = {"llama_cpp", "gguf"}  # of a benchmark that runs in an environment of its own, as its first lines say
DEV_TOOLS = {
    "pytest",
    "pytest-timeout",
    "hypothesis",
    "ruff",
    "mypy",
    "openai",
    "httpx",
    "triton",
    "setuptools",
    "pytest-xdist",
}


def required(extra: str | None = None) -> set[str]:
    """Distributions that quire asks for: always (None), or with an extra."""
    found = set()
    for line in importlib.metadata.requires("quire") or []:
        name = normal(re.match(r"[\w.-]+", line)[0])
        wanted = re.search(r"extra == ['\"](\w+)['\"]", line)
        if (wanted[1] if wanted else None) == extra:
            found.add(name)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """Top-level modules that files import, and where."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0], path


def undeclared(paths: list[Path], declared: set[str]) -> list[str]:
    ours = {p.stem for folder in DEV_FOLDERS for p in (ROOT / folder).rglob("*.py")} | {"quire", *DEV_FOLDERS}
    homes = importlib.metadata.packages_distributions()
    wrong = []
    for name, path in modules(paths):
        if name in sys.stdlib_module_names or name in ours | PEERS:
            continue
        if not declared & set(map(normal, homes.get(name, ["not installed"]))):
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    return wrong


def test_every_import_of_the_package_is_a_dependency():
    optional = (
        required("modelscope") | required("otel") | {"triton"}
    )  # PyTorch for CUDA brings triton; other machines do without
    assert undeclared(sorted(PACKAGE.rglob("*.py")), required() | optional) == []


def test_every_import_of_the_tests_is_in_the_dev_extra():
    found = [path for folder in DEV_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    paths = [path for path in found if CLIENTS not in path.parent.parents]
    assert undeclared([*paths, ROOT / "setup.py"], required() | required("dev")) == []


def test_installing_quire_brings_no_development_tools():
    assert not required() & DEV_TOOLS
    assert DEV_TOOLS <= required("dev")
    assert required("modelscope") <= required("dev")


def test_no_dependency_is_pinned_from_above():
    for line in importlib.metadata.requires("quire") or []:
        assert not re.search(r"[<=~!]=|<", line.split(";")[0].replace(">=", "")), line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel would hold it, without the compiled kernels."""
    target = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(target)],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_all_of_the_package(built: Path):
    def files(root: Path) -> set[str]:
        left_out = ("__pycache__", ".egg-info")
        return {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and path.suffix != ".so" and not any(part.endswith(left_out) for part in path.parts)
        }

    assert files(built / "quire") == files(PACKAGE)
    assert {"config.json", "model.safetensors", "tokenizer.json", "SHA256SUMS", "MODEL_CARD.md"} <= {
        path.name for path in (built / "quire" / "_builtin" / "tiny").iterdir()
    }


def test_the_wheel_is_small(built: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in built.rglob("*"):
            wheel.write(path)
    kernels = sum(path.stat().st_size for path in PACKAGE.rglob("*.so"))
    assert (tmp_path / "wheel.zip").stat().st_size + kernels < WHEEL_LIMIT_BYTES
