"""Prose is held to the code: trees, links, commands, flags, fields, tables and error texts of the documents are real."""

import ast
import dataclasses
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from markdown import ALL_DOCS, GUIDE, GUIDE_ZH, READMES, ROOT, USER_DOCS, blocks, prose, shell_lines, spans, table

import quire.server
from quire import env
from quire.bench.options import ServeBenchArgs
from quire.bench.startup import StartupArgs
from quire.cli import args as cli_args
from quire.cli.bench import LatencyArgs, ThroughputArgs
from quire.cli.chat import ChatArgs
from quire.cli.complete import CompleteArgs
from quire.cli.main import commands
from quire.cli.plan import PlanArgs
from quire.cli.run_batch import BatchArgs
from quire.config import EngineArgs
from quire.core.params import SamplingParams, field_names
from quire.models.registry import architectures
from quire.server.options import ServerArgs

PACKAGE = ROOT / "src" / "quire"
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
VARIABLE = re.compile(r"\b(?:QUIRE|VLLM|HF|MODELSCOPE|TRANSFORMERS)_[A-Z_]+\b")
OPTIONS: dict[str, list[type]] = {
    "serve": [EngineArgs, ServerArgs],
    "chat": [EngineArgs, ChatArgs],
    "complete": [EngineArgs, CompleteArgs],
    "bench latency": [EngineArgs, LatencyArgs],
    "bench throughput": [EngineArgs, ThroughputArgs],
    "bench serve": [ServeBenchArgs],
    "bench startup": [EngineArgs, StartupArgs],
    "plan": [EngineArgs, PlanArgs],
    "doctor": [EngineArgs, ServerArgs],  # of `quire serve`, whose name may stand before them
    "run-batch": [EngineArgs, BatchArgs],
}
TAKES_NO_MODEL = ("bench serve",)
FOREIGN_FLAGS = {"--help"}  # of every command
# Commands of other programs, in the pages for people who come from them.
FOREIGN_COMMAND = re.compile(
    r"`(?:swift|vllm|litellm|guidellm) [^`]*`|`--(?:model local-completions|backend kind=[^`]*|model_args|quant_bits|val_dataset|load_dataset_config)`"
)
TEXTS_OF_OTHERS = {"CUDA out of memory"}  # PyTorch's
TEST_VARIABLES = {"QUIRE_SOAK"}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


def known_flags() -> set[str]:
    fields = [f for kinds in OPTIONS.values() for kind in kinds for f in dataclasses.fields(kind)]
    flags = {"--" + f.name.replace("_", "-") for f in fields}
    negated = {"--no-" + f.name.replace("_", "-") for f in fields if cli_args.converter(f) is cli_args.to_bool}
    return flags | negated | FOREIGN_FLAGS | {"--config", "--version"}


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def tree_paths() -> list[str]:
    """Paths of ARCHITECTURE.md's tree, whole, folders with a slash at the end."""
    (block,) = [b for b in blocks(ROOT / "ARCHITECTURE.md") if "src/quire/" in b.text]
    found = []
    for line in block.text.splitlines():
        name = line.split()[0]
        found.append("src/quire/" + name if line.startswith("  ") else name)
    return found


def test_the_tree_in_the_architecture_page_is_the_tree():
    listed = tree_paths()
    for path in listed:
        assert (ROOT / path).is_dir() == path.endswith("/") and (ROOT / path).exists(), path
    there = {f"src/quire/{p.name}" + "/" * p.is_dir() for p in PACKAGE.iterdir() if not p.name.startswith(("__", "."))}
    assert there - set(listed) == {"src/quire/py.typed"}, "ARCHITECTURE.md leaves these out"


@pytest.mark.parametrize("path", ALL_DOCS, ids=ids)
def test_links_lead_somewhere(path: Path):
    for target in LINK.findall(prose(path)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{target}: no such heading"


@pytest.mark.parametrize("path", ALL_DOCS, ids=ids)
def test_make_targets_exist(path: Path):
    code = [*spans(prose(path)), *(line for block in blocks(path, language="bash") for line in shell_lines(block.text))]
    named = {word for text in code for word in re.findall(r"(?:^|[\s;&])make ([a-z][\w-]*)", text)}
    assert named <= make_targets()


def test_ci_runs_the_commands_that_the_contributing_page_names():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test", "make test-browser"]
    assert "`make check`" in READMES[0].read_text() and "`make test`" in READMES[0].read_text()


@pytest.mark.parametrize("block", list(blocks(*USER_DOCS, language="python")), ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


def quire_commands() -> Iterator[tuple[str, str]]:
    """(where, command) for every `quire ...` in a shell block or a piece of inline code that has arguments."""
    for path in USER_DOCS:
        for block in blocks(path, language="bash"):
            for line in shell_lines(block.text):
                if found := re.match(r"(?:[A-Z_]+=\S+ )*quire (.*)", line):
                    yield str(block), found[1]
        for span in spans(prose(path)):
            if span.startswith("quire ") and "…" not in span and not re.search(r"\b[A-Z]{3,}\b", span):
                yield ids(path), span.removeprefix("quire ")


def test_quire_commands_can_be_typed():
    seen = list(quire_commands())
    assert len(seen) > 15
    for where, line in seen:
        words = shlex.split(line)
        assert words[0] in commands(), f"{where}: {line}"
        name = " ".join(words[:2]) if words[0] == "bench" else words[0]
        rest = words[len(name.split()) :]
        if name == "doctor" and rest[:1] == ["serve"]:
            rest = rest[1:]
        if rest and "--help" not in rest and not rest == ["--url"]:
            model = None if name in TAKES_NO_MODEL else "model"
            cli_args.parse(
                cli_args.Parser(prog=where, conflict_handler="resolve"), rest, OPTIONS[name], positional=model
            )


@pytest.mark.parametrize(
    "path", [path for path in USER_DOCS if path.stem != "cli"], ids=ids
)  # cli.md is made from the flags
def test_flags_exist(path: Path):
    text = FOREIGN_COMMAND.sub("", path.read_text(encoding="utf-8"))
    mentioned = {flag.replace("_", "-") for flag in FLAG.findall(text)}
    assert mentioned <= known_flags()


@pytest.mark.parametrize("path", USER_DOCS, ids=ids)
def test_environment_variables_exist(path: Path):
    mentioned = set(VARIABLE.findall(path.read_text(encoding="utf-8")))
    installer = set(VARIABLE.findall((ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")))
    assert mentioned <= set(env.VARIABLES) | TEST_VARIABLES | installer


def test_the_fields_of_sampling_params_are_all_listed():
    rows = table(ROOT / "docs" / "guide" / "offline.md", "fields: SamplingParams")
    listed = [name for row in rows for name in spans(row[1])]
    assert sorted(listed) == sorted(field_names()) == sorted(f.name for f in dataclasses.fields(SamplingParams))


@pytest.mark.parametrize("path", READMES, ids=ids)
def test_the_table_of_models_is_the_folder(path: Path):
    rows = table(path, "models")
    assert [spans(row[0])[0] for row in rows] == [Path(LINK.search(row[2])[1]).stem for row in rows]
    assert {spans(row[0])[0] for row in rows} == set(architectures().values())


def test_the_readmes_say_the_same():
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    for pattern in (FLAG, VARIABLE, re.compile(r"`(make [a-z-]+)`"), re.compile(r"`(/[\w/]+)`")):
        assert set(pattern.findall(english)) - set(pattern.findall(chinese)) == set()
    heads = [re.findall(r"^## ", text, re.M) for text in (english, chinese)]
    assert len(heads[0]) == len(heads[1])
    assert "(README_zh.md)" in english[:300] and "(README.md)" in chinese[:300]


def test_the_endpoints_are_all_listed():
    """Those that are in /openapi.json: the pages for people are not."""
    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(quire.server.__path__, "quire.server.")
    ]
    routers = [module.router for module in modules if hasattr(module, "router") and module.router.include_in_schema]
    routes = {route.path for router in routers for route in router.routes}
    for guide in (ROOT / "docs" / "guide", ROOT / "docs" / "guide" / "zh"):
        rows = table(guide / "serving.md", "endpoints")
        listed = {path for row in rows for path in spans(row[0])}
        assert listed == {route.replace("{name:path}", "{name}") for route in routes}


@cache
def words_of_the_source() -> tuple[str, ...]:
    """Every string of the package; of a formatted one the pieces between its fields."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("`", ""))
    return tuple(found)


def error_texts() -> list[str]:
    text = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    return [heading for heading in re.findall(r"^### `(.*)`$", text, re.M) if heading not in TEXTS_OF_OTHERS]


@pytest.mark.parametrize("heading", error_texts())
def test_the_error_texts_are_those_of_the_program(heading: str):
    pieces = [piece for piece in heading.split("…") if len(piece.strip()) > 2]
    assert pieces
    for piece in pieces:
        assert any(piece in text for text in words_of_the_source()), f"no error of quire says {piece!r}"


def test_every_page_of_the_guide_is_linked_from_both_readmes():
    for readme, guide in zip(READMES, (GUIDE, GUIDE_ZH), strict=True):
        linked = {(ROOT / target).resolve() for target in LINK.findall(prose(readme)) if ":" not in target}
        assert set(guide) <= linked
