"""Request bodies. Types are checked here, strictly ("1" is no number, true is no integer); bounds by the tables in fields.py."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, WithJsonSchema

from quire.core.bounds import INTEGER, SAMPLING
from quire.core.bounds import Field as Bound
from quire.core.params import RequestOutputKind, SamplingParams
from quire.errors import InvalidRequest
from quire.server.openai.fields import CHAT, COMPLETION, GENERATE, check_bounds

MAX_PROMPTS = 256
MAX_MESSAGES = 16_384
# JSON has one kind of number, and some clients write 100.0 for 100: taken where it is whole, and refused by SamplingParams where not.
Whole = Annotated[int | float, WithJsonSchema({"type": "integer"})] | None
Number = float | None
TokenIds = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "integer"}})] | None
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        _IDS,
        {"type": "array", "items": _IDS},
    ]
}
R = TypeVar("R", bound="GenerateRequest")
B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A JSON body. bounds: the table of its fields."""

    model_config = ConfigDict(strict=True, extra="allow")
    bounds: ClassVar[Mapping[str, Bound]] = {}


class StreamOptions(BaseModel):
    """What a stream says beside its text."""

    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerateRequest(Body):
    """Fields that chat and plain completions have in common: OpenAI's, and vLLM's at top level."""

    bounds = GENERATE
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole = None
    n: Whole = None
    temperature: Number = None
    top_p: Number = None
    top_k: Whole = None
    min_p: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    repetition_penalty: Number = None
    seed: Whole = None
    stop: str | list[Any] | None = None
    stop_token_ids: TokenIds = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole = None
    thinking_token_budget: Whole = None
    thinking_budget: Whole = None
    truncate_prompt_tokens: Whole = None
    truncation_side: str | None = None
    logit_bias: dict[str, Any] | None = None
    allowed_token_ids: TokenIds = None
    bad_words: list[Any] | None = None
    prompt_logprobs: Whole = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Whole = None
    cache_salt: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[Any] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    @property
    def include_usage(self) -> bool:
        """The stream ends with a chunk of usage. Who asks for it in every event and says no more means that one too, as in vLLM."""
        options = self.stream_options
        if options is None or options.include_usage is not None:
            return bool(options and options.include_usage)
        return bool(options.continuous_usage_stats)

    @property
    def continuous_usage(self) -> bool:
        """Every chunk of the stream carries usage."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class Message(BaseModel):
    """One message of a chat; text.chat reads the rest of it."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: str
    content: str | list[Any] | None = None


class ChatPromptFields(BaseModel):
    """What the prompt of a chat depends on, beside its messages."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    documents: list[Any] | None = None
    reasoning_effort: str | None = None


class ChatCompletionRequest(GenerateRequest, ChatPromptFields):
    """POST /v1/chat/completions."""

    bounds = {**GENERATE, **CHAT}
    messages: Annotated[list[Message], FailFast(), Field(max_length=MAX_MESSAGES)]
    max_completion_tokens: Whole = None
    logprobs: bool | None = None
    top_logprobs: Whole = None
    echo: bool | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None


class CompletionRequest(GenerateRequest):
    """POST /v1/completions."""

    bounds = {**GENERATE, **COMPLETION}
    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]
    logprobs: Whole = None
    echo: bool | None = None

    @property
    def prompts(self) -> list[str | list[Any]]:
        """One entry a prompt: text or token ids, which the frontend checks. Raises InvalidRequest."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise InvalidRequest("prompt must be a string, a list of strings, or token ids", "prompt")
        if not isinstance(prompt[0], str | list):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt has {len(prompt)} entries, the limit is {MAX_PROMPTS}", "prompt")
        if not all(isinstance(entry, type(prompt[0])) for entry in prompt):
            raise InvalidRequest("the entries of prompt must be all strings or all lists of token ids", "prompt")
        return prompt


def parse(kind: type[B], body: dict[str, Any]) -> B:
    """The body as a request. Raises InvalidRequest naming the first field at fault."""
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _UNION_ARMS)
        raise InvalidRequest(f"{place}: {first['msg']}", str(first["loc"][0]) if first["loc"] else None) from None
    for name in kind.bounds:
        value = getattr(request, name)
        if isinstance(value, float) and kind.bounds[name].kind == INTEGER and value.is_integer():
            setattr(request, name, int(value))
    check_bounds(kind.bounds, ((name, getattr(request, name)) for name in kind.bounds))
    return request


_UNION_ARMS = ("str", "int", "float", "list[any]")  # pydantic names the arm of a union that it tried


def either(request: GenerateRequest, name: str, other: str) -> Any:
    """The value of a field that has two names. Raises InvalidRequest when they say different things."""
    first, second = getattr(request, name), getattr(request, other)
    if None not in (first, second) and first != second:
        raise InvalidRequest(f"{name} is {first} and {other} is {second}, which are one field: give one of them", other)
    return second if first is None else first


def sampling_params(
    request: GenerateRequest, defaults: dict[str, Any], *, max_logprobs: int, **more: Any
) -> SamplingParams:
    """SamplingParams from the request over the checkpoint's defaults; `more` wins over both where it is not None.

    Raises InvalidRequest naming the field.
    """
    given = {name: getattr(request, name) for name in SAMPLING if name not in _SET_OTHERWISE}
    given["thinking_token_budget"] = either(request, "thinking_token_budget", "thinking_budget")
    values = {**defaults, **{name: value for name, value in {**given, **more}.items() if value is not None}}
    kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    params = SamplingParams(**values, output_kind=kind)
    for name in ("logprobs", "prompt_logprobs"):
        wanted = getattr(params, name)
        if wanted is not None and not 0 <= wanted <= max_logprobs:
            raise InvalidRequest(f"{name} is {wanted}; this server gives 0 to {max_logprobs} (--max-logprobs)", name)
    return params


# What the routes have in different ways, and say in `more`.
_SET_OTHERWISE = ("max_tokens", "logprobs", "detokenize", "structured_outputs")
