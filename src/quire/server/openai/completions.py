"""POST /v1/completions."""

from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.outputs import CompletionOutput, RequestOutput
from quire.server.generation import Generation, Run
from quire.server.openai.constraints import constraint
from quire.server.openai.endpoint import Call, encoder, json_response, read_request, request_body, start
from quire.server.openai.logprobs import LogprobWriter, Position, prompt_logprobs_json
from quire.server.openai.schemas import CompletionRequest, sampling_params
from quire.server.openai.shapes import Completion, CompletionChoice, CompletionLogprobs, Usage, usage
from quire.server.serving import Serving
from quire.server.sse import DONE, STREAM, EventStream, event, until_client_gone

DEFAULT_MAX_TOKENS = 16
router = APIRouter()


@router.post("/v1/completions", openapi_extra=request_body(CompletionRequest), responses=STREAM, response_model=None)
async def completions(http: Request) -> Response:
    """How one or more texts go on."""
    request, call = await read_request(http, CompletionRequest, "cmpl")
    generation = await _start(request, call)
    writer = ChoiceWriter(request, call.serving, generation)
    if request.stream:
        return EventStream(_events(request, call, generation, writer), generation.close, call.headers)
    try:
        results = await until_client_gone(http.receive, generation.results())
    finally:
        generation.close()
    return json_response(_completion(call, generation, results, writer), call.headers)


async def _start(request: CompletionRequest, call: Call) -> Generation:
    serving = call.serving
    params = sampling_params(
        request,
        {"max_tokens": DEFAULT_MAX_TOKENS, **serving.frontend.generation.sampling},
        max_logprobs=serving.args.max_logprobs,
        max_tokens=1 if _only_echo(request) else request.max_tokens,
        logprobs=request.logprobs,
        structured_outputs=constraint(request),
        prompt_logprobs=request.logprobs
        if request.echo and request.prompt_logprobs is None
        else request.prompt_logprobs,
    )
    special, cap = request.add_special_tokens is not False, request.max_tokens is None
    return await start(call, request, request.prompts, params, add_special_tokens=special, cap_max_tokens=cap)


def _only_echo(request: CompletionRequest) -> bool:
    """Whether nothing but the prompt is wanted back. The engine then makes one token, which is not shown."""
    return bool(request.echo) and request.max_tokens == 0 and not isinstance(request.max_tokens, bool)


class ChoiceWriter:
    """Writes the choices of one request, whole or piece by piece."""

    def __init__(self, request: CompletionRequest, serving: Serving, generation: Generation) -> None:
        self._request = request
        self._tokenizer = serving.frontend.tokenizer
        self._only_echo = _only_echo(request)
        as_ids = bool(request.return_tokens_as_token_ids)
        self._logprobs = LogprobWriter(self._tokenizer, int(request.logprobs or 0), as_ids)
        self._n = generation.runs[0].stream.request.params.n
        self._offsets: dict[int, int] = {}  # characters that each choice has got so far

    def choice(self, run: Run, result: RequestOutput, output: CompletionOutput) -> CompletionChoice:
        """What is new of a choice; in the first piece also what belongs to its prompt."""
        index = run.number * self._n + output.index
        first = index not in self._offsets
        shown = CompletionOutput(output.index, "", []) if self._only_echo else output
        text = (self._prompt_text(run) if first and self._request.echo else "") + shown.text
        choice = CompletionChoice(index, text, finish_reason=output.finish_reason, stop_reason=output.stop_reason)
        choice.logprobs = self._written(index, result, shown, first)
        if self._request.return_token_ids:
            choice.token_ids = shown.token_ids
            choice.prompt_token_ids = result.prompt_token_ids if first else msgspec.UNSET
        if self._request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs_json(result.prompt_logprobs)
        self._offsets.setdefault(index, 0)
        return choice

    def num_tokens(self, output: CompletionOutput) -> int:
        """How many of its tokens count as generated."""
        return 0 if self._only_echo else len(output.token_ids)

    def _prompt_text(self, run: Run) -> str:
        stream = run.stream
        if stream.prompt is not None or self._tokenizer is None:
            return stream.prompt or ""
        return self._tokenizer.decode(stream.request.prompt_token_ids, skip_special_tokens=False)

    def _written(
        self, index: int, result: RequestOutput, output: CompletionOutput, first: bool
    ) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        token_ids: list[int] = list(output.token_ids)
        positions: list[Position] = list(output.logprobs or [])
        if first and self._request.echo:
            token_ids = [*result.prompt_token_ids, *token_ids]
            positions = [*(result.prompt_logprobs or [None] * len(result.prompt_token_ids)), *positions]
        written, self._offsets[index] = self._logprobs.completion(token_ids, positions, self._offsets.get(index, 0))
        return written


def _completion(call: Call, generation: Generation, results: list[RequestOutput], writer: ChoiceWriter) -> Completion:
    runs = generation.runs
    choices = [writer.choice(run, r, o) for run, r in zip(runs, results, strict=True) for o in r.outputs]
    num_generated = sum(writer.num_tokens(output) for result in results for output in result.outputs)
    num_cached = sum(result.num_cached_tokens for result in results)
    return Completion(
        **call.head, choices=choices, usage=usage(generation.num_prompt_tokens, num_generated, num_cached)
    )


async def _events(
    request: CompletionRequest, call: Call, generation: Generation, writer: ChoiceWriter
) -> AsyncIterator[bytes]:
    """The chunks of a streamed completion. Raises QuireError when the request fails on its way."""
    num_generated = 0
    num_cached: dict[int, int] = {}

    def counts() -> Usage:
        return usage(generation.num_prompt_tokens, num_generated, sum(num_cached.values()))

    async for run, result in generation.outputs():
        output = result.outputs[0]
        num_generated += writer.num_tokens(output)
        num_cached[run.number] = result.num_cached_tokens
        chunk = Completion(**call.head, choices=[writer.choice(run, result, output)])
        if request.continuous_usage:
            chunk.usage = counts()
        if _says_something(chunk.choices[0]):
            yield event(encoder.encode(chunk))
    if request.include_usage:
        yield event(encoder.encode(Completion(**call.head, choices=[], usage=counts())))
    yield DONE


def _says_something(choice: CompletionChoice) -> bool:
    has_logprobs = choice.logprobs is not None and bool(choice.logprobs.tokens)
    return bool(choice.text or choice.finish_reason or has_logprobs or choice.token_ids)
