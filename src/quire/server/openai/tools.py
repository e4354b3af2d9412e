"""Tools of a chat request: which functions the model may or must call, and how its calls are read."""

import re
from dataclasses import dataclass
from typing import Any

from quire.core.structured import StructuredOutputsParams
from quire.errors import InvalidRequest
from quire.server.openai.schemas import ChatCompletionRequest
from quire.text.tools import plain_json
from quire.text.tools.formats import PLAIN_JSON, ToolFormat, format_of

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """What a request says of tools.

    offered   for the chat template; None = no tools
    format    in which calls are read; None = they are not
    forced    the output that calls what must be called; None = the model chooses
    """

    offered: list[dict[str, Any]] | None = None
    format: ToolFormat | None = None
    forced: StructuredOutputsParams | None = None


def tools_of(request: ChatCompletionRequest) -> list[dict[str, Any]] | None:
    """The checked tools that the model is to know of; None = none. Raises InvalidRequest."""
    tools = request.tools or []
    names = [_checked_name(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name", "tools")
    return tools if tools and request.tool_choice != "none" else None


def plan(request: ChatCompletionRequest, offered: list[dict[str, Any]] | None, template: str) -> Tools:
    """How the model is to call the offered tools; template: the source of its chat template. Raises InvalidRequest."""
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise InvalidRequest(
            f"tool_choice must be none, auto, required or a function, not {choice[:40]!r}", "tool_choice"
        )
    forced = choice == "required" or isinstance(choice, dict)
    if offered is None:
        if forced:
            raise InvalidRequest("tool_choice asks for a call and there are no tools", "tool_choice")
        return Tools()
    known = format_of(template)
    if not forced:
        return Tools(offered, known)
    functions = [tool["function"] for tool in offered]
    if isinstance(choice, dict):
        functions = [_named(choice, functions)]
    several = choice == "required" and request.parallel_tool_calls is not False
    schema = plain_json.schema(functions, several=several)
    # Written in one form by every model, for it is the grammar that writes it.
    return Tools(offered, PLAIN_JSON if known.in_template else known, StructuredOutputsParams(json=schema))


def _checked_name(tool: Any, where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
    if not isinstance(function, dict):
        raise InvalidRequest(f'{where} must be {{"type": "function", "function": {{...}}}}', "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"{where}.function.name must have 1 to 64 letters, digits, _, - or .", "tools")
    if not isinstance(function.get("parameters"), dict | None):
        raise InvalidRequest(f"{where}.function.parameters must be a JSON schema, an object", "tools")
    return name


def _named(choice: dict[str, Any], functions: list[dict[str, Any]]) -> dict[str, Any]:
    inner = choice.get("function")
    name = inner.get("name") if isinstance(inner, dict) else None
    found = [function for function in functions if function["name"] == name]
    if choice.get("type", "function") != "function" or not found:
        raise InvalidRequest("tool_choice names no function of tools", "tool_choice")
    return found[0]
