"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.errors import QuireError
from quire.outputs import CompletionOutput, RequestOutput
from quire.server.anthropic import errors
from quire.server.anthropic.inputs import NAMES, chat_request
from quire.server.anthropic.outputs import BlockBuilder, Event
from quire.server.anthropic.schemas import AS_IN_CHATS, MessagesRequest, read, read_to_count
from quire.server.body import off_loop
from quire.server.errors import renaming
from quire.server.generation import Generation
from quire.server.openai.answers import Manner
from quire.server.openai.conversation import begin, prepare
from quire.server.openai.endpoint import Call, encoder, json_response, read_call, request_body
from quire.server.openai.schemas import ChatCompletionRequest
from quire.server.sse import STREAM, EventStream, named_event, until_client_gone

BODY = request_body(MessagesRequest, ChatCompletionRequest, AS_IN_CHATS)
STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
router = APIRouter()


@router.post("/v1/messages", openapi_extra=BODY, responses=STREAM, response_model=None)
async def messages(http: Request) -> Response:
    """The next message of a chat, in Anthropic's dialect."""
    request, call = await read_call(http, read, "msg_")
    call.headers["request-id"] = call.request_id
    with renaming(NAMES):
        chat = await off_loop(call.num_bytes, lambda: chat_request(request))
        generation, manner = await begin(chat, call)
    answer = Answer(call, generation, manner)
    if request.stream:
        return EventStream(answer.events(), generation.close, call.headers, answer.failed)
    try:
        message = await until_client_gone(http.receive, answer.whole())
    finally:
        generation.close()
    return json_response(message, call.headers)


@router.post("/v1/messages/count_tokens", openapi_extra=BODY, response_model=None)
async def count_tokens(http: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    request, call = await read_call(http, read_to_count, "msg_")
    with renaming(NAMES):
        found = await off_loop(call.num_bytes, lambda: prepare(chat_request(request), call.serving))
    ids = call.serving.frontend.tokenize(found.prompt, add_special_tokens=False)
    return json_response({"input_tokens": len(ids)}, call.headers)


class Answer:
    """One message being made."""

    def __init__(self, call: Call, generation: Generation, manner: Manner) -> None:
        self._call = call
        self._generation = generation
        self._builder = BlockBuilder(manner)
        self._num_generated = 0

    async def whole(self) -> dict[str, Any]:
        """The finished message. Raises QuireError."""
        message = self._message()
        async for output, result in self._outputs():
            self._builder.push(output.text, output.finish_reason is not None, output.token_ids)
            message |= {**self._end(output), "content": self._builder.blocks, "usage": self._usage(result)}
        return message

    async def events(self) -> AsyncIterator[bytes]:
        """The stream of the message. Raises QuireError."""
        yield _event({"type": "message_start", "message": self._message()}) + _event({"type": "ping"})
        async for output, result in self._outputs():
            news = self._builder.push(output.text, output.finish_reason is not None, output.token_ids)
            if news:
                yield b"".join(map(_event, news))
            if output.finish_reason is not None:
                yield _event({"type": "message_delta", "delta": self._end(output), "usage": self._usage(result)})
                yield _event({"type": "message_stop"})

    def failed(self, error: QuireError) -> bytes:
        """The last event of a stream that failed on its way."""
        return _event(errors.body(error.status, errors.message_of(error), self._call.request_id))

    async def _outputs(self) -> AsyncIterator[tuple[CompletionOutput, RequestOutput]]:
        async for _, result in self._generation.outputs():
            self._num_generated += len(result.outputs[0].token_ids)
            yield result.outputs[0], result

    def _message(self) -> dict[str, Any]:
        """As it begins."""
        usage = {"input_tokens": self._generation.num_prompt_tokens, "output_tokens": 0}
        return {
            "id": self._call.id, "type": "message", "role": "assistant", "model": self._call.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip

    def _end(self, output: CompletionOutput) -> dict[str, Any]:
        """Why it ended."""
        reason = self._builder.reader.finish_reason(output.finish_reason) or ""
        sequence = output.stop_reason if isinstance(output.stop_reason, str) else None
        if sequence is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
        return {"stop_reason": STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}

    def _usage(self, result: RequestOutput) -> dict[str, Any]:
        """Here cached tokens are no part of input_tokens."""
        num_prompt, num_cached = len(result.prompt_token_ids), result.num_cached_tokens
        return {
            "input_tokens": num_prompt - num_cached, "output_tokens": self._num_generated,
            "cache_read_input_tokens": num_cached, "cache_creation_input_tokens": 0,
            "output_tokens_details": {"thinking_tokens": self._builder.reader.num_reasoning_tokens},
        }  # fmt: skip


def _event(event: Event) -> bytes:
    return named_event(event["type"], encoder.encode(event))
