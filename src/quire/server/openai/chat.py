"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.outputs import CompletionOutput, RequestOutput
from quire.server.generation import Generation
from quire.server.openai.answers import AnswerReader, Manner
from quire.server.openai.conversation import begin
from quire.server.openai.endpoint import Call, encoder, json_response, read_request, request_body
from quire.server.openai.logprobs import LogprobWriter, prompt_logprobs_json
from quire.server.openai.schemas import ChatCompletionRequest
from quire.server.openai.shapes import ChatChoice, ChatChunk, ChatCompletion, ChunkChoice, Delta, Usage, usage
from quire.server.serving import Serving
from quire.server.sse import DONE, STREAM, EventStream, event, until_client_gone

MARK = "\0the text\0"  # stands for the text in the frame of an event; no name or id holds it
router = APIRouter()


@router.post(
    "/v1/chat/completions", openapi_extra=request_body(ChatCompletionRequest), responses=STREAM, response_model=None
)
async def chat_completions(http: Request) -> Response:
    """The next message of a chat."""
    request, call = await read_request(http, ChatCompletionRequest, "chatcmpl")
    generation, manner = await begin(request, call)
    if request.stream:
        return EventStream(ChatStream(request, call, generation, manner).events(), generation.close, call.headers)
    try:
        results = await until_client_gone(http.receive, generation.results())
    finally:
        generation.close()
    return json_response(_completion(request, call, results[0], manner), call.headers)


def _writer(request: ChatCompletionRequest, serving: Serving) -> LogprobWriter:
    as_ids = bool(request.return_tokens_as_token_ids)
    return LogprobWriter(serving.frontend.tokenizer, int(request.top_logprobs or 0), as_ids)


def _completion(request: ChatCompletionRequest, call: Call, result: RequestOutput, manner: Manner) -> ChatCompletion:
    writer = _writer(request, call.serving)
    readers = [AnswerReader(manner) for _ in result.outputs]
    completion = ChatCompletion(
        **call.head,
        choices=[_choice(request, output, writer, reader) for output, reader in zip(result.outputs, readers)],
        usage=usage(
            len(result.prompt_token_ids),
            sum(len(output.token_ids) for output in result.outputs),
            result.num_cached_tokens,
            sum(reader.num_reasoning_tokens for reader in readers),
        ),
    )
    if request.prompt_logprobs is not None:
        completion.prompt_logprobs = prompt_logprobs_json(result.prompt_logprobs)
    if request.return_token_ids:
        completion.prompt_token_ids = result.prompt_token_ids
    return completion


def _choice(
    request: ChatCompletionRequest, output: CompletionOutput, writer: LogprobWriter, reader: AnswerReader
) -> ChatChoice:
    return ChatChoice(
        index=output.index,
        message=reader.message(output.text, output.token_ids),
        finish_reason=reader.finish_reason(output.finish_reason),
        logprobs=None if output.logprobs is None else writer.chat(output.logprobs),
        stop_reason=output.stop_reason,
        token_ids=output.token_ids if request.return_token_ids else msgspec.UNSET,
    )


class ChatStream:
    """The chunks of one streamed chat completion. Each answer: its role, its text, and a last chunk that says why it ended."""

    def __init__(self, request: ChatCompletionRequest, call: Call, generation: Generation, manner: Manner) -> None:
        self._request = request
        self._head = call.head
        self._generation = generation
        self._writer = _writer(request, call.serving)
        self._manner = manner
        self._readers: dict[int, AnswerReader] = {}
        self._num_generated = 0
        self._num_cached = 0
        plain = not (manner.splits_reasoning or manner.format or manner.opening or request.logprobs)
        self._only_text = plain and not (request.continuous_usage or request.return_token_ids)
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    async def events(self) -> AsyncIterator[bytes]:
        """Raises QuireError when the request fails on its way."""
        async for _, result in self._generation.outputs():
            self._num_cached = result.num_cached_tokens
            data = self._plain(result.outputs[0])
            if data is None:
                data = b"".join(event(encoder.encode(chunk)) for chunk in self._chunks(result.outputs[0]))
            if data:
                yield data
        if self._request.include_usage:
            yield event(encoder.encode(ChatChunk(**self._head, choices=[], usage=self._usage())))
        yield DONE

    def _plain(self, output: CompletionOutput) -> bytes | None:
        """The event of a piece of text in the midst of an answer, where nothing but the text differs from the one before."""
        if not self._only_text or output.index not in self._readers or output.finish_reason is not None:
            return None
        self._num_generated += len(output.token_ids)
        if output.index not in self._frames:
            chunk = self._chunk(ChunkChoice(output.index, Delta(content=MARK)))
            before, _, after = event(encoder.encode(chunk)).partition(encoder.encode(MARK))
            self._frames[output.index] = (before, after)
        before, after = self._frames[output.index]
        return before + encoder.encode(output.text) + after if output.text else b""

    def _chunks(self, output: CompletionOutput) -> list[ChatChunk]:
        self._num_generated += len(output.token_ids)
        chunks = []
        if output.index not in self._readers:
            self._readers[output.index] = AnswerReader(self._manner)
            chunks.append(self._first(output.index))
        reader = self._readers[output.index]
        chunks += [self._chunk(choice) for choice in self._news(output, reader)]
        if output.finish_reason is not None:
            reason = reader.finish_reason(output.finish_reason)
            last = ChunkChoice(output.index, Delta(), finish_reason=reason, stop_reason=output.stop_reason)
            chunks.append(self._chunk(last))
        return chunks

    def _first(self, index: int) -> ChatChunk:
        chunk = self._chunk(ChunkChoice(index, Delta(role="assistant", content="")))
        if self._request.return_token_ids:
            chunk.prompt_token_ids = self._generation.runs[0].stream.request.prompt_token_ids
        return chunk

    def _news(self, output: CompletionOutput, reader: AnswerReader) -> list[ChunkChoice]:
        """A choice for each piece of the message; what belongs to tokens goes with the first, though its text may be held back."""
        deltas = reader.deltas(output.text, output.finish_reason is not None, output.token_ids)
        told = bool(output.logprobs) or bool(self._request.return_token_ids and output.token_ids)
        choices = [ChunkChoice(output.index, delta) for delta in deltas or [Delta(content="")] * told]
        if choices and output.logprobs is not None:
            choices[0].logprobs = self._writer.chat(output.logprobs)
        if choices and self._request.return_token_ids:
            choices[0].token_ids = output.token_ids
        return choices

    def _chunk(self, choice: ChunkChoice) -> ChatChunk:
        chunk = ChatChunk(**self._head, choices=[choice])
        if self._request.continuous_usage:
            chunk.usage = self._usage()
        return chunk

    def _usage(self) -> Usage:
        num_reasoning = sum(reader.num_reasoning_tokens for reader in self._readers.values())
        return usage(self._generation.num_prompt_tokens, self._num_generated, self._num_cached, num_reasoning)
