"""Writes the reference pages of the guide from the program itself: flags, HTTP routes and fields, Python names. `--check` only compares.

What a flag, field or name means is said once, in the source, in English; the Chinese pages have headings and notes of their own.
"""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

import quire
import quire.server
from quire import env
from quire.cli import args as cli_args
from quire.cli import main as cli
from quire.core.params import field_names
from quire.server.anthropic import schemas as messages
from quire.server.openai import fields
from quire.server.responses import schemas as responses

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "guide"
MADE = "<!-- made by scripts/reference.py (make docs-reference); change the source, not this page -->"
EN = {
    "cli": "CLI reference", "http-api": "HTTP reference", "python-api": "Python reference",
    "flag": "flag", "meaning": "what it does", "default": "default", "field": "field", "type": "type and range", "variable": "variable",
    "environment": "Environment variables", "fields": "Fields of the body", "needed": "needed",
    "cli note": "Every command and flag, as `--help` shows them. Words in a flag may be joined by `-` or `_`; `--port=8001` and `--port 8001` are the same; a switch is undone "
    "as in `--no-enable-prefix-caching`. Flags may also come from a YAML file, `--config FILE`; the command line wins.",
    "http note": "Every route, and the fields of its body beside those that have no effect here. `/openapi.json` of a running server has the same for programs, `/docs` for trying out.",
    "python note": "What `import quire` gives. Arguments of `LLM` and `AsyncLLM` are the fields of `EngineArgs`.",
    "engine": "Options of the engine", "engine note": "Of the commands that load a model, and of `LLM(...)` with underscores.",
    "see engine": "Takes the [options of the engine](#options-of-the-engine) too.",
    "foreign": "Flags of other engines", "refused": "Refused, with what to do instead:", "settled": "Accepted, because quire does that anyway:",
    "no use": "Fields that do nothing", "no use note": "A field that nobody knows is left out, named in the header `X-Quire-Ignored`, and logged once.",
    "refused fields": "Known, and refused with 400 when they ask for something:", "no effect": "Known, accepted, without effect:",
}  # fmt: skip
ZH = {
    "cli": "命令行参考", "http-api": "HTTP 接口参考", "python-api": "Python 接口参考",
    "flag": "参数", "meaning": "作用", "default": "默认值", "field": "字段", "type": "类型与范围", "variable": "变量",
    "environment": "环境变量", "fields": "请求体字段", "needed": "必填",
    "cli note": "全部命令与参数，内容与 `--help` 相同，说明文字取自程序，为英文。参数中的单词可以用 `-` 或 `_` 连接；`--port=8001` 与 `--port 8001` 等价；"
    "开关这样关闭：`--no-enable-prefix-caching`。参数也可以写进 YAML 文件，用 `--config FILE` 指定；命令行优先。",
    "http note": "全部路由及其请求体字段（不列出在此不起作用的字段），说明文字取自程序，为英文。运行中的服务在 `/openapi.json` 提供同样的内容供程序读取，在 `/docs` 可以直接试用。",
    "python note": "`import quire` 提供的全部名称，说明文字取自程序，为英文。`LLM` 与 `AsyncLLM` 的参数就是 `EngineArgs` 的字段。",
    "engine": "引擎选项", "engine note": "适用于加载模型的命令；在 `LLM(...)` 中把连字符换成下划线即可。",
    "see engine": "另外接受全部[引擎选项](#引擎选项)。",
    "foreign": "其他引擎的参数", "refused": "拒绝，并说明替代办法：", "settled": "接受，因为 quire 本来就这样做：",
    "no use": "不起作用的字段", "no use note": "谁都不认识的字段会被略过，写进响应头 `X-Quire-Ignored`，并记录一次日志。",
    "refused fields": "认识，但在有所要求时以 400 拒绝：", "no effect": "认识并接受，但没有作用：",
}  # fmt: skip
Words = dict[str, str]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- flags ----


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser, list[type]]]:
    """(command, its parser, its option classes) of every command that has options."""
    for name in cli.commands():
        module = cli.module_of(name)
        for kind in kinds_of(module):
            seen: list[Any] = []

            def note(parser: Any, argv: Any, options: Any, *, seen: list[Any] = seen, **_: Any) -> None:
                for each in options:
                    cli_args.add_options(parser, each)
                seen.append((parser, list(options)))
                raise SystemExit

            with replaced(module, "parse", note), contextlib.suppress(SystemExit):
                module.main([kind] if kind else [])
            for parser, options in seen:
                yield f"quire {name} {kind}".strip(), parser, options


def kinds_of(module: Any) -> list[str]:
    """The commands below a command, as `{a,b}` of its help names them; one without a name if there are none, nothing without options."""
    if not hasattr(module, "parse"):
        return []
    shown = io.StringIO()
    with replaced(module, "parse", lambda *_, **__: sys.exit(0)), contextlib.redirect_stdout(shown):
        with contextlib.suppress(SystemExit):
            module.main(["--help"])
    found = re.search(r"\{([\w,-]+)\}", shown.getvalue())
    return found[1].split(",") if found else [""]


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's attribute while the block runs."""
    old = getattr(module, name, None)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)


def flag_rows(options: type) -> list[list[str]]:
    rows = []
    for field in dataclasses.fields(options):
        flags = ["--" + field.name.replace("_", "-"), *field.metadata.get("aliases", ())]
        text = field.metadata.get("help", "")
        if choices := field.metadata.get("choices"):
            text += f" ({', '.join(map(str, choices))})"
        default = cli_args.default_of(field)
        rows.append([", ".join(f"`{flag}`" for flag in flags), text, "" if default is None else f"`{default}`"])
    return rows


def cli_page(words: Words) -> str:
    head = [words["flag"], words["meaning"], words["default"]]
    engine = quire.EngineArgs
    parts = [words["cli note"]]
    seen = set()
    for command, _, options in parsers():
        seen.add(command.split()[1])
        parts.append(f"## `{command}`\n{help_of(command)}")
        if engine in options:
            parts.append(words["see engine"])
        parts += [table(head, flag_rows(kind)) for kind in options if kind is not engine and dataclasses.fields(kind)]
    for name in cli.commands():
        if name not in seen:
            parts.append(f"## `quire {name}`\n{help_of(f'quire {name}')}")
    parts += [f"## {words['engine']}\n{words['engine note']}", table(head, flag_rows(engine))]
    parts.append(f"## {words['foreign']}")
    removed = cli_args.REMOVED_FLAGS
    valued = {f"{flag} {value}": removed[flag] for flag, values in cli_args.SETTLED_VALUES.items() for value in values}
    for name, flags in (("refused", removed), ("settled", cli_args.SETTLED_FLAGS | valued)):
        rows = [[f"`{flag}`", why] for flag, why in flags.items()]
        parts += [words[name], table([words["flag"], words["meaning"]], rows)]
    rows = [[f"`{variable.name}`", variable.help] for variable in env.VARIABLES.values()]
    parts += [f"## {words['environment']}", table([words["variable"], words["meaning"]], rows)]
    return "\n\n".join(parts)


def help_of(command: str) -> str:
    """What the command's module or function says of itself."""
    _, name, *kind = command.split()
    module = cli.module_of(name)
    text = inspect.getdoc(getattr(module, kind[0])) if kind else module.HELP
    return sentence((text or "").split("\n")[0])


def sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "。")) else ".")


# ---- HTTP ----


def openapi() -> dict[str, Any]:
    """/openapi.json of the routes that every server has."""
    app = FastAPI(title="quire")
    for found in pkgutil.walk_packages(quire.server.__path__, "quire.server."):
        router = getattr(importlib.import_module(found.name), "router", None)
        if router is not None:
            app.include_router(router)
    return app.openapi()


def routes() -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(its ways in, operation): routes that do the same are one; those with the richest bodies come first."""
    same: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            key = operation["description"] + ",".join(properties(operation))
            same.setdefault(key, ([], operation))[0].append(f"{method.upper()} {path}")
    yield from sorted(same.values(), key=lambda found: -len(properties(found[1])))


def properties(operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return {
        name: {**schema, "needed": name in body.get("required", ())}
        for name, schema in body.get("properties", {}).items()
    }


def type_of(schema: dict[str, Any]) -> str:
    """Type and range of a value in words."""
    if "anyOf" in schema:
        return ", ".join(dict.fromkeys(type_of(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = str(schema.get("type", "any"))
    bounds = [
        f"{sign} {number(schema[name])}"
        for name, sign in BOUNDS.items()
        if schema.get(name) and not is_limit(schema[name])
    ]
    if schema.get("minimum") == 0:
        bounds.insert(0, "≥ 0")
    if schema.get("exclusiveMinimum") == 0:
        bounds.insert(0, "> 0")
    return " ".join([kind, ", ".join(bounds)]).strip()


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxItems": "entries ≤", "maxLength": "characters ≤"}


def is_limit(value: float) -> bool:
    """Whether a bound is only the end of what a number can hold."""
    return abs(value) >= 2**31 - 1


def number(value: float) -> str:
    return f"{value:g}"


def http_page(words: Words) -> str:
    parts = [words["http note"]]
    head = [words["field"], words["type"], words["meaning"]]
    for ways, operation in routes():
        about = " ".join(operation["description"].split("\n\n")[0].split()).replace("<", "&lt;")
        parts.append(f"## {', '.join(f'`{way}`' for way in ways)}\n{about}")
        rows = [
            [
                f"`{name}`" + (f" ({words['needed']})" if schema["needed"] else ""),
                type_of(schema),
                schema.get("description", ""),
            ]
            for name, schema in properties(operation).items()
        ]
        if rows:
            parts.append(table(head, rows))
    parts.append(f"## {words['no use']}\n{words['no use note']}")
    parts.append(words["refused fields"])
    here = {"`/v1/responses`": responses.REFUSED, "`/v1/messages`": messages.REFUSED}
    own = {way: {n: row for n, row in rows.items() if n not in fields.REFUSED} for way, rows in here.items()}
    for way, refused in {"`/v1/chat/completions`, `/v1/completions`": fields.REFUSED, **own}.items():
        parts.append(table([way, words["meaning"]], [[f"`{name}`", cell(row.why)] for name, row in refused.items()]))
    parts += [
        words["no effect"],
        table(head[::2], [[f"`{name}`", cell(why)] for name, why in fields.NO_EFFECT.items()]),
    ]
    return "\n\n".join(parts)


# ---- Python ----


def signature(name: str, called: Callable[..., Any]) -> str:
    """`def name(arguments) -> result: ...` as the source has it, without self."""
    found = inspect.signature(called)
    kept = [parameter for parameter in found.parameters.values() if parameter.name not in ("self", "cls")]
    text = str(found.replace(parameters=kept)).replace("'", "")
    text = re.sub(r"<(\w+)\.(\w+): [^>]*>", r"\1.\2", text)
    return f"def {name}" + re.sub(r"(?:quire\.[\w.]+|typing|collections\.abc)\.(\w+)", r"\1", text) + ": ..."


def doc(thing: Any) -> str:
    """A docstring as Markdown: its hanging lists of arguments stay as they are written."""
    text = inspect.getdoc(thing) or ""
    first, _, rest = text.partition("\n\n")
    return " ".join(first.split()).replace("<", "&lt;") + (f"\n\n```text\n{rest.rstrip()}\n```" if rest.strip() else "")


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(kind).items():
        called = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(called) and not name.startswith("_") and inspect.getdoc(called):
            yield name, called


def name_page(name: str, kind: Any, words: Words) -> list[str]:
    parts = [f"## `{name}`"]
    if dataclasses.is_dataclass(kind) or name == "SamplingParams":
        parts.append(doc(kind))
        parts.append(table([words["field"], words["type"], words["default"]], field_rows(kind)))
    elif isinstance(kind, type) and issubclass(kind, str | int):
        parts += [doc(kind), ", ".join(f"`{member}`" for member in getattr(kind, "__members__", {}))]
    else:
        parts += [doc(kind), f"```python\n{signature('__init__', kind.__init__)}\n```"]
    for method, called in methods(kind):
        parts.append(f"### `{name}.{method}`\n```python\n{signature(method, called)}\n```\n{doc(called)}")
    return [part for part in parts if part]


def field_rows(kind: Any) -> list[list[str]]:
    rows = []
    for field in dataclasses.fields(kind):
        if field.name.startswith("_") or (kind.__name__ == "SamplingParams" and field.name not in field_names()):
            continue
        written = field.type if isinstance(field.type, str) else typing.cast(Any, field.type)
        text = (
            written
            if isinstance(written, str)
            else getattr(written, "__name__", None)
            if isinstance(written, type)
            else str(written)
        )
        text = re.sub(r"(?:quire\.[\w.]+|typing|collections\.abc)\.(\w+)", r"\1", str(text))
        rows.append([f"`{field.name}`", f"`{text}`", default_text(field)])
    return rows


def default_text(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`" if not hasattr(field.default, "name") else f"`{field.default.name}`"
    return f"`{field.default_factory()!r}`" if field.default_factory is not dataclasses.MISSING else ""


def python_page(words: Words) -> str:
    parts = [words["python note"]]
    for name in quire.__all__:
        if name != "__version__":
            parts += name_page(name, getattr(quire, name), words)
    return "\n\n".join(parts)


# ---- pages ----


def pages() -> dict[Path, str]:
    """Every reference page and its text."""
    makers = {"cli": cli_page, "http-api": http_page, "python-api": python_page}
    return {
        folder / f"{name}.md": f"# {words[name]}\n{MADE}\n\n{make(words)}\n"
        for folder, words in ((GUIDE, EN), (GUIDE / "zh", ZH))
        for name, make in makers.items()
    }


def main() -> int:
    only_check = "--check" in sys.argv
    made = pages()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print("out of date:" if only_check else "written:", path.relative_to(ROOT))
        if not only_check:
            path.write_text(made[path], encoding="utf-8")
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    sys.exit(main())
