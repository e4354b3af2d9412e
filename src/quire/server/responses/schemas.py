"""The body of POST /v1/responses, and which of its fields are honoured, refused, or without effect."""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from quire.core.bounds import BOOLEAN, INTEGER, LARGEST, LIST, OBJECT, SAMPLING, STRING
from quire.core.bounds import Field as Bound
from quire.server.openai import fields
from quire.server.openai.fields import GENERATE, MAX_TOOLS, Refused
from quire.server.openai.schemas import Body, Number, Whole, parse

MAX_ITEMS = 16_384
INCLUDABLE = (
    "message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
    "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)  # fmt: skip
# Fields of chats that mean the same here.
AS_IN_CHATS = (
    "top_k min_p presence_penalty frequency_penalty repetition_penalty seed stop stop_token_ids include_stop_str_in_output "
    "ignore_eos min_tokens logit_bias allowed_token_ids bad_words skip_special_tokens spaces_between_special_tokens "
    "thinking_token_budget thinking_budget truncate_prompt_tokens truncation_side priority cache_salt structured_outputs "
    "chat_template_kwargs include_reasoning"
).split()

RESPONSES: dict[str, Bound] = {
    "model": GENERATE["model"],
    "input": Bound(LIST, "a text, or items: messages, function_call, function_call_output, reasoning", 0, MAX_ITEMS),
    "instructions": Bound(STRING, "a system message before all others; not carried over by previous_response_id"),
    "stream": Bound(BOOLEAN, "answer in typed server-sent events", default="false"),
    "stream_options": Bound(OBJECT, "include_obfuscation has no effect"),
    "max_output_tokens": Bound(INTEGER, "longest answer, its reasoning included", 1, LARGEST, default="what the model length leaves"),
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "tools": Bound(LIST, "functions that the model may call, strict where a call is forced; tools of other types are refused", 0, MAX_TOOLS),
    "tool_choice": Bound(STRING, "none, auto, required, a function, or allowed_tools", default="auto"),
    "parallel_tool_calls": Bound(BOOLEAN, "false: at most one call", default="true"),
    "previous_response_id": Bound(STRING, "go on after this response, which must still be stored"),
    "store": Bound(BOOLEAN, "keep the response in memory, for previous_response_id and GET; the latest 1,000 and 64 MiB are kept, until a restart", default="true"),
    "text": Bound(OBJECT, "format: text, json_object or json_schema (name, schema); verbosity has no effect"),
    "reasoning": Bound(OBJECT, "effort, as reasoning_effort of chats; summary has no effect: reasoning is shown as it is"),
    "top_logprobs": Bound(INTEGER, "log-probabilities of so many likeliest tokens; --max-logprobs bounds it", 0, LARGEST),
    "include": Bound(LIST, "message.output_text.logprobs; the others name what there is not here"),
}  # fmt: skip

REFUSED: dict[str, Refused] = {
    **{name: row for name, row in fields.REFUSED.items() if name not in ("suffix", "best_of")},
    "background": Refused("is not supported: responses are made while you wait, in a stream if you like", (False,)),
    "conversation": Refused("is not supported: use previous_response_id"),
    "prompt": Refused("is not supported: no prompt templates are kept here; use input"),
    "truncation": Refused("auto is not supported: drop items yourself, or use truncate_prompt_tokens", ("disabled",)),
    "max_tool_calls": Refused("bounds built-in tools, of which there are none"),
    "context_management": Refused("is not supported: items are kept as they are", ([],)),
    "moderation": Refused("is not supported: there is no moderation here"),
    "image": Refused("is not supported: models here read and write text alone"),
    "n": Refused("is not a field of responses: there is one answer", (1,)),
    "max_tokens": Refused("is called max_output_tokens here"),
    "messages": Refused("is called input here"),
    "response_format": Refused("is called text.format here"),
    "prompt_logprobs": Refused("is not a field of responses; use /v1/completions"),
    "logprobs": Refused("is called top_logprobs here", (False,)),
}  # fmt: skip

# What is known inside fields that are objects.
PARTS = {
    "stream_options": ("include_obfuscation",),
    "text": ("format", "verbosity"),
    "text.format": ("type", "name", "description", "strict", "schema"),
    "reasoning": ("effort", "summary", "generate_summary"),
}
_INPUT: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}


class ResponsesRequest(Body):
    """POST /v1/responses."""

    bounds = RESPONSES
    input: Annotated[str | list[Any] | None, WithJsonSchema(_INPUT)] = None
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Whole = None
    temperature: Number = None
    top_p: Number = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    top_logprobs: Whole = None
    include: list[Any] | None = None


def read(body: dict[str, Any]) -> tuple[ResponsesRequest, list[str]]:
    """The request, and the names of fields that nobody knows. Raises InvalidRequest."""
    request = parse(ResponsesRequest, body)
    extra = {name: value for name, value in (request.model_extra or {}).items() if name not in AS_IN_CHATS}
    unknown = fields.check_unhonoured(extra, refused=REFUSED)
    return request, unknown + fields.unknown_parts(body, PARTS)
