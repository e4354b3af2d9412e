"""Tool calls as Mistral models write them, at the end of an answer: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or since
2025 [TOOL_CALLS]name{...} or [TOOL_CALLS]name[ARGS]{...} for each call.
"""

import re

from quire.text.tools.calls import Marked, ToolCall, parse_json, parse_some_json, read_call, read_calls

MARKS = ("[TOOL_CALLS]", "[ARGS]")
_NAME = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.\-]+)(?:\[ARGS\])?\s*(?=\{)")


def parser() -> Marked:
    """A parser of one answer."""
    return Marked(MARKS[0], "", _read)


def _read(body: str) -> list[ToolCall] | None:
    if body.lstrip()[:1] in ("[", "{"):
        value = parse_json(body)
        return read_calls(value if isinstance(value, list) else [value])
    calls: list[ToolCall] = []
    at = 0
    while body[at:].strip():
        name = _NAME.match(body, at)
        found = parse_some_json(body, name.end()) if name else None
        call = read_call({"name": name[1], "arguments": found[0]}) if name and found else None
        if call is None or found is None:
            return None
        calls.append(call)
        at = found[1]
    return calls or None
