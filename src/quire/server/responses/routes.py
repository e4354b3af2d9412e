"""OpenAI's Responses API: POST /v1/responses, and what was answered under /v1/responses/{id}."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.errors import InvalidRequest, QuireError
from quire.outputs import CompletionOutput, RequestOutput
from quire.server.body import off_loop
from quire.server.errors import renaming
from quire.server.generation import Generation
from quire.server.openai.conversation import begin, prepare
from quire.server.openai.endpoint import Call, encoder, json_response, read_call, request_body
from quire.server.openai.logprobs import LogprobWriter
from quire.server.openai.schemas import ChatCompletionRequest
from quire.server.responses.inputs import NAMES, chat_request, items_of
from quire.server.responses.outputs import Event, OutputBuilder
from quire.server.responses.schemas import AS_IN_CHATS, ResponsesRequest, read
from quire.server.responses.store import ResponseNotFound, ResponseStore
from quire.server.serving import Serving
from quire.server.sse import STREAM, EventStream, named_event, until_client_gone

MAX_LISTED = 100
BODY = request_body(ResponsesRequest, ChatCompletionRequest, AS_IN_CHATS)
router = APIRouter()


@router.post("/v1/responses", openapi_extra=BODY, responses=STREAM, response_model=None)
async def create(http: Request) -> Response:
    """A model's response to a text or to items."""
    request, call = await read_call(http, read, "resp_")
    answer = Answer(request, call)
    await answer.begin()
    if request.stream:
        return EventStream(answer.events(), answer.close, call.headers, answer.failed)
    try:
        response = await until_client_gone(http.receive, answer.whole())
    finally:
        answer.close()
    return json_response(response, call.headers)


@router.post("/v1/responses/input_tokens", openapi_extra=BODY, response_model=None)
async def input_tokens(http: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    request, call = await read_call(http, read, "resp_")
    items = [*_earlier(request, call.serving), *items_of(request)]
    with renaming(NAMES):
        found = await off_loop(call.num_bytes, lambda: prepare(chat_request(request, items), call.serving))
    ids = call.serving.frontend.tokenize(found.prompt, add_special_tokens=False)
    return json_response({"object": "response.input_tokens", "input_tokens": len(ids)}, call.headers)


@router.get("/v1/responses/{response_id}", response_model=None)
async def retrieve(http: Request, response_id: str, stream: str | None = None) -> Response:
    """A stored response."""
    found = _store(http).find(response_id)
    if stream in ("true", "1"):
        raise InvalidRequest("only background responses can be streamed again, and there are none", "stream")
    return json_response(found.response)


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def input_items(
    http: Request, response_id: str, after: str | None = None, limit: str = "20", order: str = "desc"
) -> Response:
    """The input items of a stored response."""
    items = _store(http).find(response_id).inputs
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= MAX_LISTED:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_LISTED}", "limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", "order")
    items = items[::-1] if order == "desc" else items
    first = 0 if after is None else next((place for place, item in enumerate(items, 1) if item["id"] == after), None)
    if first is None:
        raise InvalidRequest("after names no input item of this response", "after")
    page = items[first : first + int(limit)]
    more = first + len(page) < len(items)
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_response({"object": "list", "data": page, "has_more": more, **ends})


@router.delete("/v1/responses/{response_id}", response_model=None)
async def delete(http: Request, response_id: str) -> Response:
    """Forgets a stored response."""
    _store(http).remove(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def cancel(http: Request, response_id: str) -> Response:
    """Refused: a response that is being made is ended by closing its connection."""
    _store(http).find(response_id)
    raise InvalidRequest("only background responses can be cancelled, and background is not supported", "response_id")


class Answer:
    """One response being made."""

    def __init__(self, request: ResponsesRequest, call: Call) -> None:
        self._request = request
        self._call = call
        self._inputs = [{"id": f"msg_{secrets.token_hex(16)}", **item} for item in items_of(request)]
        self._earlier = _earlier(request, call.serving)
        self._generation: Generation | None = None
        self._num_generated = 0
        self._num_events = 0

    async def begin(self) -> None:
        """Submits it. Raises ClientError types or EngineUnavailable."""
        items = [*self._earlier, *self._inputs]
        chat = await off_loop(self._call.num_bytes, lambda: chat_request(self._request, items))
        with renaming(NAMES):
            self._generation, manner = await begin(chat, self._call)
        self._builder = OutputBuilder(manner, _writer(chat, self._call.serving))

    def close(self) -> None:
        """Gives up what has not ended."""
        if self._generation is not None:
            self._generation.close()

    async def whole(self) -> dict[str, Any]:
        """The finished response. Raises QuireError."""
        response: dict[str, Any] = {}
        async for output, result in self._outputs():
            self._builder.push(output.text, output.finish_reason, output.token_ids, output.logprobs)
            response = self._finished(output, result)
        return response

    async def events(self) -> AsyncIterator[bytes]:
        """The stream of the response. Raises QuireError."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._response("in_progress")})
        async for output, result in self._outputs():
            news = self._builder.push(output.text, output.finish_reason, output.token_ids, output.logprobs)
            if news:
                yield b"".join(map(self._event, news))
            if output.finish_reason is not None:
                response = self._finished(output, result)
                yield self._event({"type": f"response.{response['status']}", "response": response})

    def failed(self, error: QuireError) -> bytes:
        """The last events of a stream that failed on its way."""
        told = {"code": error.code or error.type, "message": str(error)}
        response = {**self._response("failed"), "error": {**told, "code": "server_error"}}
        return self._event({"type": "error", **told, "param": error.param}) + self._event(
            {"type": "response.failed", "response": response}
        )

    async def _outputs(self) -> AsyncIterator[tuple[CompletionOutput, RequestOutput]]:
        if self._generation is None:
            return
        async for _, result in self._generation.outputs():
            output = result.outputs[0]
            self._num_generated += len(output.token_ids)
            yield output, result

    def _usage(self, result: RequestOutput) -> Event:
        num_prompt, num_generated = len(result.prompt_token_ids), self._num_generated
        return {
            "input_tokens": num_prompt, "output_tokens": num_generated, "total_tokens": num_prompt + num_generated,
            "input_tokens_details": {"cached_tokens": result.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": self._builder.reader.num_reasoning_tokens},
        }  # fmt: skip

    def _finished(self, output: CompletionOutput, result: RequestOutput) -> dict[str, Any]:
        """The last state of the response, which is kept if it is to be."""
        cut = output.finish_reason == "length"
        response = self._response("incomplete" if cut else "completed")
        response |= {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": self._usage(result),
        }
        response["completed_at"] = None if cut else int(time.time())
        if self._request.store is not False:
            chat = [*self._earlier, *self._inputs, *self._builder.items]
            self._call.serving.responses.add(response, self._inputs, chat)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        request = self._request
        params = self._generation.runs[0].stream.request.params if self._generation else None
        return {
            "id": self._call.id, "object": "response", "created_at": self._call.created, "status": status, "error": None,
            "incomplete_details": None, "instructions": request.instructions, "max_output_tokens": request.max_output_tokens,
            "model": self._call.model, "output": [] if status == "in_progress" else self._builder.items,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": (request.reasoning or {}).get("effort"), "summary": None},
            "store": request.store is not False, "temperature": params.temperature if params else request.temperature,
            "text": {"format": (request.text or {}).get("format") or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto", "tools": request.tools or [], "background": False,
            "top_p": params.top_p if params else request.top_p, "top_logprobs": request.top_logprobs or 0,
            "truncation": "disabled", "service_tier": "default", "usage": None, "user": (request.model_extra or {}).get("user"),
            "metadata": (request.model_extra or {}).get("metadata") or {},
        }  # fmt: skip

    def _event(self, event: Event) -> bytes:
        data = encoder.encode({**event, "sequence_number": self._num_events})
        self._num_events += 1
        return named_event(event["type"], data)


def _earlier(request: ResponsesRequest, serving: Serving) -> list[dict[str, Any]]:
    """Items of the conversation that the request goes on with. Raises InvalidRequest."""
    if request.previous_response_id is None:
        return []
    try:
        return serving.responses.find(request.previous_response_id).chat
    except ResponseNotFound as error:
        gone = InvalidRequest(str(error), "previous_response_id")
        gone.code = "previous_response_not_found"
        raise gone from None


def _writer(chat: ChatCompletionRequest, serving: Serving) -> LogprobWriter | None:
    return LogprobWriter(serving.frontend.tokenizer, int(chat.top_logprobs or 0), False) if chat.logprobs else None


def _store(http: Request) -> ResponseStore:
    serving: Serving = http.app.state.serving
    return serving.responses
