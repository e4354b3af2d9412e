"""Renders Helm charts that keep to a small part of Go's templates, so that the suite needs no helm. What is not known here raises.

Known: {{ }} with - on either side, if, else, with, range, define, include, comments; pipelines, parentheses, strings, whole numbers;
fields of . ; the functions of FUNCTIONS. Where helm is installed, the suite compares.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

TAG = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.S)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()|]|[^\s()|]+')
Node = tuple[Any, ...]


def to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=False).strip()


def text_of(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


FUNCTIONS = {
    "toYaml": to_yaml,
    "quote": lambda value: json.dumps(text_of(value), ensure_ascii=False),
    "default": lambda other, value=None: value or other,
    "nindent": lambda count, text: "\n" + "\n".join(" " * count + line if line else line for line in text.split("\n")),
    "not": lambda value: not value,
    "and": lambda first, second: second if first else first,
    "sub": lambda a, b: int(a) - int(b),
    "mul": lambda a, b: int(a) * int(b),
}


def render_chart(chart: Path, release: str, values: dict[str, Any]) -> dict[str, str]:
    """Text of each template by its name. values: over those of values.yaml, as with --set."""
    defaults = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    root = {
        "Values": merged(defaults, values),
        "Release": {"Name": release, "Namespace": "default"},
        "Chart": {name[0].upper() + name[1:]: value for name, value in about.items()},
    }
    defined: dict[str, list[Node]] = {}
    files = sorted((chart / "templates").iterdir(), key=lambda path: not path.name.startswith("_"))
    parsed = {path.name: parse(path.read_text(encoding="utf-8"), defined) for path in files}
    return {name: Renderer(defined).render(nodes, root) for name, nodes in parsed.items() if not name.startswith("_")}


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{name: merged(base.get(name), value) for name, value in over.items()}}
    return over


def parse(text: str, defined: dict[str, list[Node]]) -> list[Node]:
    """Nodes: ("text", s), ("value", tokens), (keyword, tokens, nodes, nodes of else)."""
    pieces: list[tuple[str, str]] = []
    place, trim = 0, False
    for tag in TAG.finditer(text):
        between = text[place : tag.start()]
        between = between.lstrip() if trim else between
        pieces.append(("text", between.rstrip() if tag[1] else between))
        pieces.append(("tag", tag[2].strip()))
        place, trim = tag.end(), bool(tag[3])
    pieces.append(("text", text[place:].lstrip() if trim else text[place:]))
    nodes, rest, end = block(pieces, defined)
    if rest or end:
        raise ValueError(f"{end or 'more'} where nothing is open")
    return nodes


def block(
    pieces: list[tuple[str, str]], defined: dict[str, list[Node]]
) -> tuple[list[Node], list[tuple[str, str]], str]:
    """Nodes until {{ end }} or {{ else }}; what follows; which of the two it was."""
    nodes: list[Node] = []
    while pieces:
        (kind, content), pieces = pieces[0], pieces[1:]
        if kind == "text":
            nodes.append(("text", content))
            continue
        word, _, expression = content.partition(" ")
        if content.startswith("/*"):
            continue
        if word in ("end", "else"):
            return nodes, pieces, word
        if word not in ("if", "with", "range", "define"):
            nodes.append(("value", TOKEN.findall(content)))
            continue
        inner, pieces, end = block(pieces, defined)
        other: list[Node] = []
        if end == "else":
            other, pieces, end = block(pieces, defined)
        if end != "end":
            raise ValueError(f"{word} {expression} is not closed")
        if word == "define":
            defined[json.loads(expression)] = inner
        else:
            nodes.append((word, TOKEN.findall(expression), inner, other))
    return nodes, [], ""


class Renderer:
    def __init__(self, defined: dict[str, list[Node]]) -> None:
        self.defined = defined

    def render(self, nodes: list[Node], dot: Any) -> str:
        return "".join(self.node(node, dot) for node in nodes)

    def node(self, node: Node, dot: Any) -> str:
        if node[0] == "text":
            return node[1]
        value = self.pipeline(list(node[1]), dot)
        if node[0] == "value":
            return text_of(value)
        _, _, inner, other = node
        if not value:
            return self.render(other, dot)
        if node[0] == "range":
            return "".join(self.render(inner, item) for item in value)
        return self.render(inner, value if node[0] == "with" else dot)

    def pipeline(self, tokens: list[str], dot: Any) -> Any:
        """Each command gets the result of the one before as its last argument."""
        result: list[Any] = []
        while tokens:
            command: list[Any] = []
            while tokens and tokens[0] not in ("|", ")"):
                command.append(self.operand(tokens, dot))
            result = [self.call(command, result)]
            if tokens and tokens.pop(0) == ")":
                break
        return result[0]

    def operand(self, tokens: list[str], dot: Any) -> Any:
        token = tokens.pop(0)
        if token == "(":
            return self.pipeline(tokens, dot)
        if token.startswith('"'):
            return json.loads(token)
        if token.lstrip("-").isdigit():
            return int(token)
        if token.startswith("."):
            value = dot
            for name in filter(None, token.split(".")):
                value = value[name]
            return value
        if token == "include":
            return lambda name, inner: self.render(self.defined[name], inner)
        return FUNCTIONS[token]

    def call(self, command: list[Any], last: list[Any]) -> Any:
        first, *arguments = command
        return first(*arguments, *last) if callable(first) else first
