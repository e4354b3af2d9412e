"""What answers look like. msgspec Structs: a chunk is encoded in a third of a microsecond."""

from typing import Any

import msgspec

from quire.version import __version__

FINGERPRINT = f"quire-{__version__}"
PromptLogprobs = list[dict[int, dict[str, Any]] | None]


class PromptTokensDetails(msgspec.Struct):
    """Tokens of the prompt that the prefix cache held."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """Tokens of the answers that were reasoning."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct):
    """One likely token at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The token at a position, in chat's dialect."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities in chat's dialect."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities in the dialect of plain completions: parallel lists. A text's first token has null."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class FunctionCall(msgspec.Struct):
    """A function to call; arguments is the text of a JSON object."""

    name: str
    arguments: str


class MessageCall(msgspec.Struct):
    """A tool call of a message."""

    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """The answer. content is null only beside tool calls, and what there is none of is left out. Reasoning has two names: clients
    read one or the other.
    """

    content: str | None
    role: str = "assistant"
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[MessageCall] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionCall | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    """One of the n answers."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct):
    """The answer to POST /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    system_fingerprint: str = FINGERPRINT
    prompt_logprobs: PromptLogprobs | None | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class FunctionDelta(msgspec.Struct):
    """What is new of a function call."""

    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class CallDelta(msgspec.Struct):
    """What is new of a tool call: id, type and name in the first piece, then arguments."""

    index: int
    function: FunctionDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct):
    """What is new of a message: the role first, then text, and nothing in the last chunk."""

    role: str | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallDelta] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionDelta | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct):
    """The news of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat completion."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = "chat.completion.chunk"
    system_fingerprint: str = FINGERPRINT
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(msgspec.Struct):
    """One continuation, or in a stream what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct):
    """The answer to POST /v1/completions, or one event of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "text_completion"
    system_fingerprint: str = FINGERPRINT
    usage: Usage | msgspec.UnsetType = msgspec.UNSET


def usage(
    num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int, num_reasoning_tokens: int | None = None
) -> Usage:
    """Usage with its sum. num_reasoning_tokens: None = the route knows no reasoning."""
    total = num_prompt_tokens + num_completion_tokens
    found = Usage(num_prompt_tokens, num_completion_tokens, total, PromptTokensDetails(num_cached_tokens))
    if num_reasoning_tokens is not None:
        found.completion_tokens_details = CompletionTokensDetails(num_reasoning_tokens)
    return found
