"""What parsers of tool calls have in common: the pieces that they give, and reading a call from JSON that a model wrote.

A parser takes an answer's text in any pieces (`push`, then `finish`) and gives content and calls; what it gives depends on the text
alone, not on how it was cut. What is no complete call is content, as the model wrote it. Model output is only ever read as JSON.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from quire.text.detokenizer import overlap

MAX_NAME_CHARS = 256
MAX_HELD_SPACE = 64  # characters of whitespace before a call that are not shown


@dataclass(frozen=True)
class ToolCall:
    """A function's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


Item = str | ToolCall  # a piece of content, or a call


class ToolParser(Protocol):
    """Text in, content and calls out."""

    def push(self, text: str) -> list[Item]:
        """What is certain after this much more text."""

    def finish(self) -> list[Item]:
        """The rest, when the text has ended."""


def read_call(value: Any) -> ToolCall | None:
    """A call from {"name": ..., "arguments" or "parameters": {...}}; None when it is something else."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value["arguments"] if "arguments" in value else value.get("parameters", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments)
    text = _json_text(arguments) if isinstance(arguments, dict) else None
    name = value["name"]
    if text is None or not 0 < len(name) <= MAX_NAME_CHARS or not _is_unicode(name):
        return None
    return ToolCall(name, text)


def read_calls(values: list[Any]) -> list[ToolCall] | None:
    """A call from each value; None if there are none, or one is something else."""
    calls = [read_call(value) for value in values]
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def parse_json(text: str) -> Any:
    """The value; None if the text is no strict JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def parse_some_json(text: str, start: int = 0) -> tuple[Any, int] | None:
    """The value that begins at `start`, and where it ends; None if there is none."""
    try:
        value, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value, end


class Marked:
    """Calls between two marks, with content around them.

    end   "" = a call goes on until the text ends
    read  the calls of what stands between the marks; None = it is none, and content after all
    """

    def __init__(self, begin: str, end: str, read: Callable[[str], list[ToolCall] | None]) -> None:
        self._begin = begin
        self._end = end
        self._read = read
        self._outside = ""  # may be the beginning of a mark, or whitespace before one
        self._space = ""  # whitespace before the call
        self._body: list[str] | None = None  # None: outside of a call
        self._tail = ""  # last characters of the body, which may be the beginning of its end
        self._has_calls = False

    def push(self, text: str) -> list[Item]:
        """What is certain after this much more text."""
        items: list[Item] = []
        while text:
            text = self._push_outside(text, items) if self._body is None else self._push_inside(text, items)
        return items

    def finish(self) -> list[Item]:
        """The rest, when the text has ended."""
        items: list[Item] = []
        if self._body is not None:
            body = "".join(self._body) + self._tail
            self._close(body, "", items)
        elif self._outside and not (self._has_calls and self._outside.isspace()):
            items.append(self._outside)
        self._outside, self._body, self._tail = "", None, ""
        return items

    def _push_outside(self, text: str, items: list[Item]) -> str:
        """Returns the text after a mark, if there is one."""
        text = self._outside + text
        at = text.find(self._begin)
        if at >= 0:
            shown = at - _trailing_space(text[:at])
            _show(text[:shown], items)
            self._outside, self._space, self._body, self._tail = "", text[shown:at], [], ""
            return text[at + len(self._begin) :]
        held = overlap(text, self._begin)
        held += _trailing_space(text[: len(text) - held])
        _show(text[: len(text) - held], items)
        self._outside = text[len(text) - held :]
        return ""

    def _push_inside(self, text: str, items: list[Item]) -> str:
        body = self._body or []
        self._body = body
        if not self._end:
            body.append(text)
            return ""
        text = self._tail + text
        at = text.find(self._end)
        if at >= 0:
            self._close("".join([*body, text[:at]]), self._end, items)
            self._body, self._tail = None, ""
            return text[at + len(self._end) :]
        held = min(len(text), len(self._end) - 1)
        body.append(text[: len(text) - held])
        self._tail = text[len(text) - held :]
        return ""

    def _close(self, body: str, end: str, items: list[Item]) -> None:
        calls = self._read(body)
        if calls is None:
            items.append(self._space + self._begin + body + end)
        else:
            items += calls
            self._has_calls = True


class Whole:
    """Calls that are the whole of an answer, which then begins with one of `openers`; another answer is content at once.

    read  the calls of the text; None = it is content after all
    """

    def __init__(self, openers: tuple[str, ...], read: Callable[[str], list[ToolCall] | None]) -> None:
        self._openers = openers
        self._read = read
        self._held: list[str] | None = []  # None: it is content
        self._begun = ""

    def push(self, text: str) -> list[Item]:
        """What is certain after this much more text."""
        if self._held is None:
            return [text] if text else []
        self._held.append(text)
        longest = max(len(opener) for opener in self._openers)
        self._begun = (self._begun + text).lstrip()[:longest] if len(self._begun) < longest else self._begun
        if any(self._begun[: len(opener)] == opener[: len(self._begun)] for opener in self._openers):
            return []
        return self._give_up()

    def finish(self) -> list[Item]:
        """The rest, when the text has ended."""
        if self._held is None:
            return []
        calls = self._read("".join(self._held).strip())
        if calls is None:
            return self._give_up()
        self._held = []
        return list(calls)

    def _give_up(self) -> list[Item]:
        text, self._held = "".join(self._held or []), None
        return [text] if text else []


def _show(text: str, items: list[Item]) -> None:
    if text:
        items.append(text)


def _trailing_space(text: str) -> int:
    tail = text[-MAX_HELD_SPACE:]
    return len(tail) - len(tail.rstrip())


def _json_text(value: Any) -> str | None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text if _is_unicode(text) else json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
