"""A messages request as a chat request: content blocks become text, tool calls and tool answers."""

import json
from typing import Any

from quire.errors import InvalidRequest
from quire.server.anthropic.schemas import AS_IN_CHATS, MessagesRequest
from quire.server.errors import renaming
from quire.server.openai.schemas import ChatCompletionRequest, parse

# What chats call the fields of a messages request, for errors.
NAMES = {
    "stop": "stop_sequences", "thinking_token_budget": "thinking", "response_format": "output_config",
    "structured_outputs": "output_config", "reasoning_effort": "output_config", "max_completion_tokens": "max_tokens",
    "continue_final_message": "messages", "tool_calls": "messages",
}  # fmt: skip
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
ROLES = ("user", "assistant", "system")
Message = dict[str, Any]


def chat_request(request: MessagesRequest) -> ChatCompletionRequest:
    """The chat that the request's fields make. Raises InvalidRequest."""
    extra = request.model_extra or {}
    messages = messages_of(request)
    choice, parallel = _tool_choice(request.tool_choice)
    fields: dict[str, Any] = {
        "messages": messages, "max_completion_tokens": request.max_tokens, "temperature": request.temperature,
        "top_p": request.top_p, "top_k": request.top_k, "stop": request.stop_sequences, "stream": request.stream,
        "tools": [_tool(tool, number) for number, tool in enumerate(request.tools or ())] or None,
        "tool_choice": choice, "parallel_tool_calls": parallel, **_output_config(request),
    }  # fmt: skip
    fields |= {name: extra[name] for name in AS_IN_CHATS if name in extra}
    fields |= _thinking(request, fields.get("chat_template_kwargs"))
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    with renaming(NAMES):
        return parse(ChatCompletionRequest, {name: value for name, value in fields.items() if value is not None})


def messages_of(request: MessagesRequest) -> list[Message]:
    """Messages of a chat. Raises InvalidRequest."""
    messages: list[Message] = []
    if request.system:
        messages.append({"role": "system", "content": _text(request.system, "system")})
    for number, message in enumerate(request.messages):
        role, where = message.get("role"), f"messages[{number}]"
        if role not in ROLES:
            raise InvalidRequest(f"{where}.role must be user, assistant or system", "messages")
        if role == "assistant":
            messages.append(_assistant(message.get("content"), where))
        else:
            messages += _user(str(role), message.get("content"), where)
    return messages


def _user(role: str, content: Any, where: str) -> list[Message]:
    """A user's message: the answers of tools are messages of their own."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    messages: list[Message] = []
    parts: list[Any] = []
    for number, block in enumerate(_blocks(content, where)):
        place = f"{where}.content[{number}]"
        if block.get("type") == "tool_result":
            messages.append(_tool_result(block, place))
        else:
            parts.append({"type": "text", "text": _block_text(block, place)})
    return [*messages, *([{"role": role, "content": parts}] if parts or not messages else [])]


def _assistant(content: Any, where: str) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(_blocks(content, where)):
        place = f"{where}.content[{number}]"
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_tool_use(block, place))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":  # which nobody here can read
            texts.append(_block_text(block, place))
    message: Message = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _tool_use(block: Message, where: str) -> Message:
    name, given, call_id = block.get("name"), block.get("input"), block.get("id")
    if not (isinstance(name, str) and isinstance(given, dict) and isinstance(call_id, str)):
        raise InvalidRequest(f"{where} must have id, name and input, an object", "messages")
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(given, ensure_ascii=False)},
    }


def _tool_result(block: Message, where: str) -> Message:
    if not isinstance(block.get("tool_use_id"), str):
        raise InvalidRequest(f"{where} must have a tool_use_id", "messages")
    text = _text(block.get("content") or "", where)
    return {
        "role": "tool",
        "tool_call_id": block["tool_use_id"],
        "content": f"Error: {text}" if block.get("is_error") else text,
    }


def _text(content: Any, where: str) -> str:
    """A text, or text blocks, as one text."""
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{where}[{number}]") for number, block in enumerate(_blocks(content, where)))


def _blocks(content: Any, where: str) -> list[Message]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidRequest(f"{where}.content must be a text or a list of blocks", where.partition("[")[0])
    return content


def _block_text(block: Message, where: str) -> str:
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and source.get("type") == "text":
        block = {"type": "text", "text": source.get("data")}
    if block.get("type") != "text" or not isinstance(block.get("text"), str):
        kind = str(block.get("type"))[:40]
        raise InvalidRequest(
            f"{where} is a block of type {kind!r}; this model reads text alone", where.partition("[")[0]
        )
    return str(block["text"])


def _tool(tool: Any, number: int) -> Message:
    if not isinstance(tool, dict) or tool.get("type", "custom") not in ("custom", None):
        kind = tool.get("type") if isinstance(tool, dict) else tool
        raise InvalidRequest(
            f"tools[{number}] is {str(kind)[:40]!r}; only tools of the caller's own can be called here", "tools"
        )
    names = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    return {"type": "function", "function": {new: tool[old] for old, new in names.items() if tool.get(old) is not None}}


def _tool_choice(choice: Message | None) -> tuple[Any, bool | None]:
    """tool_choice and parallel_tool_calls in chats' form."""
    if choice is None:
        return None, None
    kind = choice.get("type")
    parallel = False if choice.get("disable_parallel_tool_use") is True else None
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    if not isinstance(kind, str) or kind not in CHOICES:
        raise InvalidRequest("tool_choice.type must be auto, any, tool or none", "tool_choice")
    return CHOICES[kind], parallel


def _thinking(request: MessagesRequest, kwargs: Any) -> Message:
    """What thinking asks of the chat template, and the budget. Without it the template decides."""
    wanted = request.thinking
    if wanted is None:
        return {}
    kind, budget = wanted.get("type"), wanted.get("budget_tokens")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise InvalidRequest("thinking.type must be enabled, adaptive or disabled", "thinking")
    if kind == "enabled" and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise InvalidRequest("thinking.budget_tokens must be an integer of at least 1", "thinking")
    switched = {"enable_thinking": kind != "disabled", **(kwargs if isinstance(kwargs, dict) else {})}
    fields: Message = {"chat_template_kwargs": switched}
    if kind == "disabled":
        return {**fields, "include_reasoning": False}
    return {**fields, "thinking_token_budget": budget} if kind == "enabled" else fields


def _output_config(request: MessagesRequest) -> Message:
    config = request.output_config or {}
    wanted = config.get("format") or request.output_format
    effort = config.get("effort")
    fields: Message = {"reasoning_effort": "xhigh" if effort == "max" else effort}
    if wanted is None:
        return fields
    if (
        not isinstance(wanted, dict)
        or wanted.get("type") != "json_schema"
        or not isinstance(wanted.get("schema"), dict)
    ):
        raise InvalidRequest("output_config.format must be of type json_schema, with a schema", "output_config")
    return {**fields, "response_format": {"type": "json_schema", "json_schema": {"schema": wanted["schema"]}}}
