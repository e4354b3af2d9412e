"""The body of POST /v1/messages, and which of its fields are honoured, refused, or without effect."""

from typing import Annotated, Any

from pydantic import FailFast, Field, WithJsonSchema

from quire.core.bounds import BOOLEAN, INTEGER, LARGEST, LIST, OBJECT, SAMPLING, STRING, STRINGS
from quire.core.bounds import Field as Bound
from quire.errors import InvalidRequest
from quire.server.openai import fields
from quire.server.openai.fields import GENERATE, MAX_TOOLS, Refused
from quire.server.openai.schemas import MAX_MESSAGES, Body, Number, Whole, parse

# Fields of chats that mean the same here.
AS_IN_CHATS = (
    "min_p presence_penalty frequency_penalty repetition_penalty seed stop_token_ids ignore_eos min_tokens logit_bias "
    "allowed_token_ids bad_words skip_special_tokens thinking_token_budget truncate_prompt_tokens truncation_side priority "
    "cache_salt structured_outputs chat_template_kwargs"
).split()

MESSAGES: dict[str, Bound] = {
    "model": GENERATE["model"],
    "messages": Bound(LIST, "the chat so far; one that ends with the assistant's words is gone on with", 1, MAX_MESSAGES),
    "max_tokens": Bound(INTEGER, "longest answer, its thinking included; required, but not to count tokens", 1, LARGEST),
    "system": Bound(STRING, "the system prompt: a text or text blocks"),
    "stream": Bound(BOOLEAN, "answer in server-sent events", default="false"),
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "top_k": SAMPLING["top_k"],
    "stop_sequences": Bound(STRINGS, "the text ends before any of these", 0, 16),
    "tools": Bound(LIST, "functions that the model may call; server tools are refused", 0, MAX_TOOLS),
    "tool_choice": Bound(OBJECT, "type auto, any, tool (with name) or none; disable_parallel_tool_use"),
    "thinking": Bound(OBJECT, "type enabled with budget_tokens, adaptive, or disabled: enable_thinking of the chat template"),
    "output_config": Bound(OBJECT, "format: json_schema; effort, as reasoning_effort of chats (max = xhigh)"),
    "output_format": Bound(OBJECT, "an earlier place of output_config.format"),
}  # fmt: skip

REFUSED: dict[str, Refused] = {
    **{name: row for name, row in fields.REFUSED.items() if name not in ("suffix", "best_of", "modalities")},
    "container": Refused("is not supported: no code is run here"),
    "mcp_servers": Refused("is not supported: tools are the caller's to run", ([],)),
    "context_management": Refused("is not supported: messages are kept as they are", ({},)),
    "diagnostics": Refused("is not supported"),
    "fallbacks": Refused("is not supported: there is one model", ([],)),
    "stop": Refused("is called stop_sequences here", ([],)),
    "n": Refused("is not a field of messages: there is one answer", (1,)),
    "response_format": Refused("is called output_config.format here"),
    "logprobs": Refused("is not a field of messages; use /v1/chat/completions", (False,)),
}  # fmt: skip
NO_EFFECT = ("metadata", "service_tier", "cache_control", "inference_geo", "speed", "user_profile_id", "betas")

# What is known inside fields that are objects. thinking.display has no effect: thinking is shown as it is.
PARTS = {
    "thinking": ("type", "budget_tokens", "display"),
    "tool_choice": ("type", "name", "disable_parallel_tool_use"),
    "output_config": ("format", "effort"),
    "output_config.format": ("type", "name", "schema"),
    "output_format": ("type", "name", "schema"),
}
_SYSTEM: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]
}
_LIST: dict[str, Any] = {"type": "array", "items": {"type": "object"}}


class MessagesRequest(Body):
    """POST /v1/messages."""

    bounds = MESSAGES
    messages: Annotated[list[dict[str, Any]], FailFast(), Field(max_length=MAX_MESSAGES), WithJsonSchema(_LIST)]
    max_tokens: Whole = None
    model: str | None = None
    system: Annotated[str | list[Any] | None, WithJsonSchema(_SYSTEM)] = None
    stream: bool | None = None
    temperature: Number = None
    top_p: Number = None
    top_k: Whole = None
    stop_sequences: list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None


def read(body: dict[str, Any]) -> tuple[MessagesRequest, list[str]]:
    """The request, and the names of fields that nobody knows. Raises InvalidRequest."""
    request, unknown = read_to_count(body)
    if request.max_tokens is None:
        raise InvalidRequest("max_tokens is required", "max_tokens")
    return request, unknown


def read_to_count(body: dict[str, Any]) -> tuple[MessagesRequest, list[str]]:
    """The same where nothing is generated."""
    request = parse(MessagesRequest, body)
    extra = {n: v for n, v in (request.model_extra or {}).items() if n not in AS_IN_CHATS and n not in NO_EFFECT}
    return request, fields.check_unhonoured(extra, refused=REFUSED) + fields.unknown_parts(body, PARTS)
