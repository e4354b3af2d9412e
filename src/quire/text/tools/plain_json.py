"""Tool calls for models whose chat template knows none, and for calls that are forced: the whole answer is a JSON array of calls,
[{"name": ..., "arguments": {...}}, ...], or one call without the array.
"""

import json
from collections.abc import Iterable
from typing import Any

from quire.text.tools.calls import ToolCall, Whole, parse_json, read_calls

MAX_CALLS = 16
_FENCE = "```"


def parser() -> Whole:
    """A parser of one answer."""
    return Whole(("[", "{", _FENCE), _read)


def instructions(tools: Iterable[Any]) -> str:
    """What a system message says of the tools, when the chat template has no place for them."""
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n"
        'To call functions, answer with nothing but a JSON array: [{"name": "function", "arguments": {...}}]'
    )


def with_instructions(messages: list[Any], tools: list[Any]) -> list[Any]:
    """The messages with the instructions in the system message, and earlier calls written out as they are to be written now."""
    said = [_written_out(message) for message in messages]
    first = said[0] if said else {}
    told = instructions(tools)
    if (
        isinstance(first, dict)
        and first.get("role") in ("system", "developer")
        and isinstance(first.get("content"), str)
    ):
        return [{**first, "content": f"{first['content']}\n\n{told}"}, *said[1:]]
    return [{"role": "system", "content": told}, *said]


def schema(functions: list[dict[str, Any]], *, several: bool) -> dict[str, Any]:
    """JSON schema of an answer that calls at least one of the functions, each {"name", "parameters"}."""
    definitions: dict[str, Any] = {}
    calls = []
    for number, function in enumerate(functions):
        place = f"function{number}"
        definitions[place] = _moved(function.get("parameters") or {"type": "object"}, f"#/$defs/{place}")
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{place}"}}
        calls.append(
            {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        )
    array = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": MAX_CALLS if several else 1}
    return {**array, "$defs": definitions}


def _read(text: str) -> list[ToolCall] | None:
    if text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text[len(_FENCE) : -len(_FENCE)].removeprefix("json")
    value = parse_json(text)
    return read_calls(value if isinstance(value, list) else [value])


def _moved(value: Any, place: str) -> Any:
    """A schema whose references into itself work from where it now stands."""
    if isinstance(value, list):
        return [_moved(item, place) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {name: _moved(item, place) for name, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _written_out(message: Any) -> Any:
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list) or not calls:
        return message
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    text = json.dumps(
        [{**f, "arguments": _object(f.get("arguments"))} if isinstance(f, dict) else f for f in functions]
    )
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {
        **rest,
        "content": "\n".join(part for part in (message.get("content") or "", text) if isinstance(part, str) and part),
    }


def _object(arguments: Any) -> Any:
    return parse_json(arguments) if isinstance(arguments, str) else arguments
