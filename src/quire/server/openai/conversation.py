"""From a chat request to a generation under way, for every route that takes chats: tools, constraints, the chat template, sampling."""

from dataclasses import dataclass
from typing import Any

from quire.core.params import SamplingParams
from quire.errors import InvalidRequest
from quire.server.body import off_loop
from quire.server.errors import renaming
from quire.server.generation import Generation
from quire.server.openai.answers import Manner
from quire.server.openai.constraints import constraint
from quire.server.openai.endpoint import Call, start
from quire.server.openai.legacy import modern_messages, modernise
from quire.server.openai.schemas import ChatCompletionRequest, either, sampling_params
from quire.server.openai.tools import Tools, plan, tools_of
from quire.server.serving import Serving
from quire.text.chat import ChatTemplate
from quire.text.reasoning import think
from quire.text.tools.plain_json import with_instructions

LEGACY_NAMES = {"tools": "functions", "tool_choice": "function_call"}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True)
class Conversation:
    """What a chat request asks for: the prompt, how to sample, and how to read what comes."""

    prompt: str
    params: SamplingParams
    manner: Manner
    asks_max_tokens: bool


async def begin(request: ChatCompletionRequest, call: Call) -> tuple[Generation, Manner]:
    """Submits the chat to the engine. Raises ClientError types or EngineUnavailable."""
    found = await off_loop(call.num_bytes, lambda: prepare(request, call.serving))
    special = bool(request.add_special_tokens)
    generation = await start(
        call,
        request,
        [found.prompt],
        found.params,
        add_special_tokens=special,
        cap_max_tokens=not found.asks_max_tokens,
        reasons=found.manner.splits_reasoning,
    )
    return generation, found.manner


def prepare(request: ChatCompletionRequest, serving: Serving) -> Conversation:
    """Everything up to the engine. Raises InvalidRequest."""
    legacy = modernise(request)
    with renaming(LEGACY_NAMES if legacy else {}):
        offered = tools_of(request)
        template = serving.frontend.templates().pick(tools=offered)
        tools = plan(request, offered, template.source)
    constrained = constraint(request)
    if constrained is not None and tools.offered is not None:
        raise InvalidRequest("an output of a given form and tools exclude each other; tool_choice none", "tools")
    free = constrained is None and tools.forced is None
    splits = think.shows_reasoning(template.source) and (free or serving.frontend.can_reason_first())
    asked = either(request, "max_completion_tokens", "max_tokens")
    params = sampling_params(
        request,
        {"max_tokens": None, **serving.frontend.generation.sampling},
        max_logprobs=serving.args.max_logprobs,
        max_tokens=asked,
        logprobs=_num_top_logprobs(request),
        structured_outputs=constrained or tools.forced,
        skip_special_tokens=_skip_special(request, serving, tools, splits),
    )
    if not splits:
        params.thinking_token_budget = None  # where nothing is thought any budget is kept
    prompt = render(request, serving, tools, template)
    manner = Manner(
        prompt=prompt,
        splits_reasoning=splits,
        shows_reasoning=request.include_reasoning is not False,
        format=tools.format,
        one_call=request.parallel_tool_calls is False,
        legacy_call=legacy,
        opening=_opening(request),
        tokenizer=serving.frontend.tokenizer,
    )
    return Conversation(prompt, params, manner, asked is not None)


def render(request: ChatCompletionRequest, serving: Serving, tools: Tools, template: ChatTemplate) -> str:
    """The prompt text of the messages. Raises InvalidRequest."""
    continuing = bool(request.continue_final_message)
    opening = request.add_generation_prompt
    messages = modern_messages([message.model_dump(exclude_unset=True) for message in request.messages])
    in_template = tools.format is None or tools.format.in_template
    if tools.offered is not None and not in_template:
        messages = with_instructions(messages, tools.offered)
    if request.documents and "documents" not in template.source:
        raise InvalidRequest("this model's chat template takes no documents: put them into a message", "documents")
    return serving.frontend.chat_prompt(
        messages,
        tools=tools.offered if in_template else None,
        add_generation_prompt=not continuing if opening is None else opening,
        continue_final_message=continuing,
        documents=request.documents or None,
        template_kwargs=_template_kwargs(request, template),
    )


def _template_kwargs(request: ChatCompletionRequest, template: ChatTemplate) -> dict[str, Any] | None:
    """The caller's, over what reasoning_effort means to this template."""
    effort = request.reasoning_effort
    if effort is None:
        return request.chat_template_kwargs
    if effort not in EFFORTS:
        raise InvalidRequest(
            f"reasoning_effort must be one of {', '.join(EFFORTS)}, not {effort[:40]!r}", "reasoning_effort"
        )
    meant: dict[str, Any] = {"reasoning_effort": effort} if "reasoning_effort" in template.source else {}
    if effort == "none" and "enable_thinking" in template.source:
        meant["enable_thinking"] = False
    return {**meant, **(request.chat_template_kwargs or {})}


def _opening(request: ChatCompletionRequest) -> str:
    """The text of the final message, if the answer is to begin with it."""
    if not request.echo:
        return ""
    if not request.continue_final_message or not request.messages:
        raise InvalidRequest("echo in a chat needs continue_final_message: it repeats what is gone on with", "echo")
    content = request.messages[-1].content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return content or ""


def _skip_special(request: ChatCompletionRequest, serving: Serving, tools: Tools, splits: bool) -> bool | None:
    """False if a mark that is looked for in the text is a special token; None = as the caller said. true is the default, and no more
    when it is said: without its end mark reasoning would never end, and the answer be part of it."""
    tokenizer = serving.frontend.tokenizer
    marks = (*(tools.format.marks if tools.format else ()), *(think.MARKS if splits else ()))
    if tokenizer is None or request.skip_special_tokens is False:
        return None
    ids = [tokenizer.token_to_id(mark) for mark in marks]
    return False if any(i is not None and tokenizer.is_special(i) for i in ids) else None


def _num_top_logprobs(request: ChatCompletionRequest) -> Any:
    """How many likely tokens are wanted a position; None = no log-probabilities."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs need logprobs to be true", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None
