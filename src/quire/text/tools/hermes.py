"""Tool calls as Hermes and Qwen models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as often as needed."""

from quire.text.tools.calls import Marked, ToolCall, parse_json, read_calls

MARKS = ("<tool_call>", "</tool_call>")


def parser() -> Marked:
    """A parser of one answer."""
    return Marked(*MARKS, _read)


def _read(body: str) -> list[ToolCall] | None:
    return read_calls([parse_json(body)])
