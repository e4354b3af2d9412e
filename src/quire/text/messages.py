"""Chat messages as callers send them (OpenAI's shape) -> plain dicts as chat templates read them. Bad ones are refused here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequest

Message = dict[str, Any]

# The names under which a message's reasoning is sent; templates read the first, gpt-oss's reads "thinking".
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def plain(value: Any, param: str) -> Any:
    """A copy made of JSON types alone, so that a template can call nothing; InvalidRequest for what is neither."""
    try:
        return _plain(value, param)
    except RecursionError:
        raise InvalidRequest(f"{param} is nested too deeply", param) from None


def read_messages(
    messages: Any, *, parts: bool, wrap_strings: bool, knows_developer: bool, knows_tool_calls: bool
) -> list[Message]:
    """Copies of the messages in the form that a template wants.

    parts            it reads lists of content parts; else they are joined to a string, a newline between two
    wrap_strings     it reads nothing but lists of parts
    knows_developer  it has that role; else developers' messages are the system's
    knows_tool_calls it reads tool_calls; else a message without content has an empty one
    Raises InvalidRequest naming the message.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", "messages")
    read = []
    for number, message in enumerate(plain(messages, "messages")):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{where} must be an object with a role and a content", "messages")
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
        _read_content(message, where, parts, wrap_strings, knows_tool_calls)
        _read_tool_calls(message, where)
        read.append(_with_reasoning(message))
    return read


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tool schemas as plain objects; None stays None."""
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InvalidRequest("tools must be a list of JSON schemas (objects)", "tools")
    return [plain(tool, "tools") for tool in tools]


def _plain(value: Any, param: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(_plain(key, param)): _plain(item, param) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, param) for item in value]
    for kind in (str, int, float):  # subclasses, such as enums: their methods stay outside
        if isinstance(value, kind):
            return kind(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic: messages as the OpenAI SDK returns them
        return _plain(value.model_dump(exclude_none=True), param)
    raise InvalidRequest(f"{param} holds a {type(value).__name__}; only JSON values are understood", param)


def _read_content(message: Message, where: str, parts: bool, wrap_strings: bool, knows_tool_calls: bool) -> None:
    content = message.get("content")
    if content is None:
        if "content" in message or not message.get("tool_calls"):
            message["content"] = None if message.get("tool_calls") and knows_tool_calls else ""
        return
    if isinstance(content, str):
        if wrap_strings:
            message["content"] = [{"type": "text", "text": content}]
        return
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content must be a string or a list of parts, not {content!r:.80}", "messages")
    texts = [_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    message["content"] = [{"type": "text", "text": text} for text in texts] if parts else "\n".join(texts)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        what = f"a part of type {kind!r}" if isinstance(kind, str) and kind not in _TEXT_PARTS else "no text part"
        raise InvalidRequest(f"{where} is {what}; this model reads text alone", "messages")
    return text


def _read_tool_calls(message: Message, where: str) -> None:
    """Arguments come as a JSON string over HTTP; templates want the object."""
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequest(f"{where}.tool_calls must be a list of objects", "messages")
    for call in calls:
        function = call.get("function", call)
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                raise InvalidRequest(f"{where}.tool_calls: arguments are no valid JSON", "messages") from None


def _with_reasoning(message: Message) -> Message:
    found = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}
