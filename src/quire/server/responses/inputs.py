"""A response request as a chat request: items become messages, text.format becomes response_format, and so on."""

from typing import Any

from quire.errors import InvalidRequest
from quire.server.errors import renaming
from quire.server.openai.schemas import ChatCompletionRequest, parse
from quire.server.responses.schemas import AS_IN_CHATS, INCLUDABLE, ResponsesRequest

# What chats call the fields of a response request, for errors.
NAMES = {
    "messages": "input", "max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens",
    "response_format": "text", "structured_outputs": "text", "reasoning_effort": "reasoning", "logprobs": "top_logprobs",
}  # fmt: skip
LOGPROBS = "message.output_text.logprobs"
Item = dict[str, Any]


def items_of(request: ResponsesRequest) -> list[Item]:
    """The request's input as items. Raises InvalidRequest."""
    given = request.input
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given and request.previous_response_id is None:
        raise InvalidRequest("input must be a text or a list of items, not empty", "input")
    for number, item in enumerate(given or ()):
        if not isinstance(item, dict):
            raise InvalidRequest(f"input[{number}] must be an object", "input")
    return list(given or ())


def chat_request(request: ResponsesRequest, items: list[Item]) -> ChatCompletionRequest:
    """The chat that the items (those of previous responses come first) and the request's fields make. Raises InvalidRequest."""
    extra = request.model_extra or {}
    tools, choice = _tools(request)
    fields: dict[str, Any] = {
        "messages": messages_of(items, request.instructions), "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature, "top_p": request.top_p, "tools": tools, "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls, "stream": request.stream, "response_format": _format(request),
        "reasoning_effort": (request.reasoning or {}).get("effort"), **_logprobs(request),
    }  # fmt: skip
    fields |= {name: extra[name] for name in AS_IN_CHATS if name in extra}
    with renaming(NAMES):
        return parse(ChatCompletionRequest, {name: value for name, value in fields.items() if value is not None})


def messages_of(items: list[Item], instructions: str | None) -> list[Item]:
    """Messages of a chat. What an assistant thought, said and called in a row is one message. Raises InvalidRequest."""
    messages: list[Item] = [{"role": "system", "content": instructions}] if instructions else []
    turn: Item | None = None  # the assistant's message that is being put together
    for number, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind == "function_call_output":
            turn = None
            messages.append(_tool_message(item, number))
        elif kind == "message" and item.get("role") != "assistant":
            turn = None
            messages.append({"role": _role(item, number), "content": _content(item.get("content"), number)})
        else:
            if (
                turn is None
                or (kind != "function_call" and "content" in turn)
                or (kind == "reasoning" and len(turn) > 1)
            ):
                turn = {"role": "assistant"}
                messages.append(turn)
            _add(turn, kind, item, number)
    for message in messages:
        message.setdefault("content", None if message.get("tool_calls") else "")
    return messages


def _add(turn: Item, kind: str, item: Item, number: int) -> None:
    """Adds what an item says to the assistant's message."""
    if kind == "message":
        turn["content"] = _content(item.get("content"), number)
    elif kind == "reasoning":
        turn["reasoning_content"] = _reasoning_text(item, number)
    elif kind == "function_call":
        name, arguments, call_id = (item.get(field) for field in ("name", "arguments", "call_id"))
        if not (isinstance(name, str) and isinstance(arguments, str) and isinstance(call_id, str)):
            raise InvalidRequest(f"input[{number}] must have call_id, name and arguments, which are strings", "input")
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.setdefault("tool_calls", []).append(call)
    else:
        raise InvalidRequest(
            f"input[{number}].type is {str(kind)[:40]!r}; message, function_call, function_call_output and reasoning are understood",
            "input",
        )


def _role(item: Item, number: int) -> str:
    role = item.get("role")
    if role not in ("user", "system", "developer"):
        raise InvalidRequest(f"input[{number}].role must be user, assistant, system or developer", "input")
    return str(role)


def _content(content: Any, number: int) -> Any:
    """Text, or parts, which the chat template's reader knows under these types too."""
    if not isinstance(content, str | list):
        raise InvalidRequest(f"input[{number}].content must be a text or a list of parts", "input")
    return content


def _tool_message(item: Item, number: int) -> Item:
    output, call_id = item.get("output"), item.get("call_id")
    if not isinstance(output, str | list) or not isinstance(call_id, str):
        raise InvalidRequest(
            f"input[{number}] must have a call_id, and an output that is a text or a list of parts", "input"
        )
    return {"role": "tool", "tool_call_id": call_id, "content": output}


def _reasoning_text(item: Item, number: int) -> str:
    """The reasoning itself, else its summary; what others encrypted cannot be read here and is left out."""
    for field in ("content", "summary"):
        parts = item.get(field) or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise InvalidRequest(f"input[{number}].{field} must be a list of parts", "input")
        if parts:
            return "\n".join(str(part.get("text", "")) for part in parts)
    return ""


def _tools(request: ResponsesRequest) -> tuple[list[Item] | None, Any]:
    """Tools and tool_choice in chats' form."""
    tools = [_tool(tool, number) for number, tool in enumerate(request.tools or ())]
    choice = request.tool_choice
    if not isinstance(choice, dict):
        return tools or None, choice
    if choice.get("type") == "function":
        return tools, {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        names = [tool.get("name") for tool in allowed if isinstance(tool, dict)] if isinstance(allowed, list) else []
        return [tool for tool in tools if tool["function"].get("name") in names] or None, choice.get("mode", "auto")
    raise InvalidRequest("tool_choice must be none, auto, required, a function or allowed_tools", "tool_choice")


def _tool(tool: Any, number: int) -> Item:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else tool
        raise InvalidRequest(
            f"tools[{number}] is {str(kind)[:40]!r}; only tools of type function can be called here", "tools"
        )
    function = {
        name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None
    }
    return {"type": "function", "function": function}


def _format(request: ResponsesRequest) -> Item | None:
    wanted = (request.text or {}).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("text.format.type must be text, json_object or json_schema", "text")
    if wanted["type"] != "json_schema":
        return {"type": wanted["type"]}
    return {"type": "json_schema", "json_schema": {"name": wanted.get("name"), "schema": wanted.get("schema")}}


def _logprobs(request: ResponsesRequest) -> Item:
    include = request.include or []
    for name in include:
        if name not in INCLUDABLE:
            raise InvalidRequest(f"include holds {str(name)[:60]!r}; there are {', '.join(INCLUDABLE)}", "include")
    if LOGPROBS not in include and not request.top_logprobs:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
