"""functions and function_call, the names of long ago: brought to tools and tool_choice, and their messages to today's."""

from typing import Any

from quire.errors import InvalidRequest
from quire.server.openai.schemas import ChatCompletionRequest

_ID = "call_function"


def modernise(request: ChatCompletionRequest) -> bool:
    """Gives the request tools for its functions, in place. Returns whether calls are to be told as function_call.

    Raises InvalidRequest.
    """
    choice = request.function_call
    if not request.functions:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("function_call asks for a call and there are no functions", "function_call")
        return False
    if request.tools or request.tool_choice is not None:
        raise InvalidRequest("functions is the earlier form of tools: give one of them", "functions")
    if isinstance(choice, str) and choice not in ("none", "auto"):
        raise InvalidRequest(f"function_call must be none, auto or {{name}}, not {choice[:40]!r}", "function_call")
    request.tools = [{"type": "function", "function": function} for function in request.functions]
    request.tool_choice = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
    request.parallel_tool_calls = False
    return True


def modern_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with function_call as tool_calls, and the answers of functions as those of tools."""
    return [_modern(message) for message in messages]


def _modern(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "function":
        return {**message, "role": "tool", "tool_call_id": _ID}
    rest = {name: value for name, value in message.items() if name != "function_call"}
    if message.get("function_call") is None or message.get("tool_calls"):
        return rest
    return {**rest, "tool_calls": [{"id": _ID, "type": "function", "function": message["function_call"]}]}
