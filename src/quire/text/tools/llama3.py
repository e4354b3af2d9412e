"""Tool calls as Llama 3.1 and later write them: the whole answer is {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>;
several are separated by semicolons.
"""

from typing import Any

from quire.text.tools.calls import ToolCall, Whole, parse_some_json, read_calls

TAG = "<|python_tag|>"
MARKS = (TAG,)


def parser() -> Whole:
    """A parser of one answer."""
    return Whole((TAG, "{"), _read)


def _read(text: str) -> list[ToolCall] | None:
    text = text.removeprefix(TAG).strip()
    values: list[Any] = []
    at = 0
    while at < len(text):
        found = parse_some_json(text, at)
        if found is None:
            return None
        values.append(found[0])
        at = found[1]
        while at < len(text) and text[at] in "; \n\t\r":
            at += 1
    return read_calls(values)
