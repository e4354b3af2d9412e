"""The load: requests at their times, each measured from the moment it is asked for to its last byte."""

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.bench.datasets import Sample
from quire.bench.http import Client, HttpError, Response
from quire.bench.options import ServeBenchArgs

DATA = b"data:"
DONE = b"[DONE]"
MAX_ERROR_CHARS = 300


@dataclass
class Record:
    """What one request's client saw. Times are seconds of time.perf_counter.

    began_s    it was asked for
    token_s    when each piece of text came; a piece may hold several tokens
    ended_s    its last byte
    error      why it failed; None = it came to its end
    """

    num_prompt_tokens: int
    began_s: float = 0.0
    ended_s: float = 0.0
    num_output_tokens: int = 0
    token_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Until the first piece of text."""
        return self.token_s[0] - self.began_s

    @property
    def e2el_s(self) -> float:
        """Until the last piece of text."""
        return self.token_s[-1] - self.began_s

    @property
    def tpot_s(self) -> float:
        """Mean time of each token after the first."""
        return (self.e2el_s - self.ttft_s) / max(self.num_output_tokens - 1, 1)

    @property
    def itl_s(self) -> list[float]:
        """From each piece of text to the next."""
        return [b - a for a, b in zip(self.token_s, self.token_s[1:])]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class Load:
    """Sends samples. on_done: called with each record as it ends."""

    def __init__(self, client: Client, args: ServeBenchArgs, model: str, on_done: Callable[[Record], None]) -> None:
        self._client = client
        self._args = args
        self._model = model
        self._on_done = on_done

    async def run(self, samples: list[Sample]) -> list[Record]:
        """All of them at their times; records in order of the samples."""
        limit = asyncio.Semaphore(self._args.max_concurrency) if self._args.max_concurrency else None
        began = time.perf_counter()
        tasks = []
        for sample, due_s in zip(samples, arrivals(self._args, len(samples))):
            # A request that is due is sent, though the loop may be late; the next ones then keep their own times.
            await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
            tasks.append(asyncio.ensure_future(self._one(sample, limit)))
        return await asyncio.gather(*tasks)

    async def send(self, sample: Sample) -> Record:
        """One request."""
        record = Record(sample.num_tokens)
        response = self._client.stream(self._args.path, self._body(sample))
        try:
            await asyncio.wait_for(read(response, record), self._args.request_timeout)
        except asyncio.TimeoutError:
            record.error = f"no whole answer within {self._args.request_timeout:g} s"
        except HttpError as error:
            record.error = str(error)[:MAX_ERROR_CHARS]
        record.began_s, record.ended_s = response.began_s, time.perf_counter()
        return record

    async def _one(self, sample: Sample, limit: asyncio.Semaphore | None) -> Record:
        async with AsyncExitStack() as stack:
            if limit is not None:
                await stack.enter_async_context(limit)
            record = await self.send(sample)
        self._on_done(record)
        return record

    def _body(self, sample: Sample) -> bytes:
        return msgspec.json.encode(body_of(self._args, self._model, sample))


def body_of(args: ServeBenchArgs, model: str, sample: Sample) -> dict[str, Any]:
    """The request for a sample, as chat or as text, whichever the path takes."""
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    chat = args.path.endswith("/chat/completions")
    if chat:
        body["messages"] = (
            sample.prompt if isinstance(sample.prompt, list) else [{"role": "user", "content": sample.prompt}]
        )
        body["max_completion_tokens"] = sample.max_tokens
    else:
        body["prompt"] = sample.prompt
        body["max_tokens"] = sample.max_tokens
    if args.ignore_eos:
        body["ignore_eos"] = True
    for name in ("temperature", "top_p", "top_k"):
        if getattr(args, name) is not None:
            body[name] = getattr(args, name)
    if args.logprobs is not None:
        body.update({"logprobs": True, "top_logprobs": args.logprobs} if chat else {"logprobs": args.logprobs})
    return {**body, **(args.extra_body or {})}


async def read(response: Response, record: Record) -> None:
    """Notes when text comes, until the stream ends. A refusal, an error on the way and an end without [DONE] are errors."""
    buffer = b""
    num_pieces, whole = 0, False
    async for now, data in response.pieces():
        *lines, buffer = (buffer + data).split(b"\n")
        if response.status != 200:
            buffer = b"\n".join([*lines, buffer])
            continue
        for line in lines:
            if not line.startswith(DATA):
                continue
            event = line[len(DATA) :].strip()
            whole = whole or event == DONE
            if event != DONE:
                num_pieces += _note(event, now, record)
    if response.status != 200:
        record.error = f"HTTP {response.status}: {_message(buffer)}"[:MAX_ERROR_CHARS]
    elif not whole and record.error is None:
        record.error = "the stream ended without [DONE]"
    elif not record.token_s and record.error is None:
        record.error = "the stream held no text"
    record.num_output_tokens = record.num_output_tokens or num_pieces


def _note(event: bytes, now: float, record: Record) -> int:
    """Takes one event; returns 1 if it brought text."""
    try:
        chunk = _chunks.decode(event)
    except msgspec.MsgspecError as error:
        record.error = f"an event is not what OpenAI's API sends: {error}"
        return 0
    if chunk.error is not None:
        record.error = str(chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error)[
            :MAX_ERROR_CHARS
        ]
    if chunk.usage is not None:
        record.num_prompt_tokens = chunk.usage.prompt_tokens or record.num_prompt_tokens
        record.num_output_tokens = chunk.usage.completion_tokens or 0
    text, brings = _text(chunk)
    ends = not record.token_s and any(choice.finish_reason for choice in chunk.choices)  # an answer without any text
    if brings or ends:
        record.token_s.append(now)
        record.texts.append(text)
    return int(brings)


def _text(chunk: _Chunk) -> tuple[str, bool]:
    """The text of an event, and whether it brings a part of the answer at all."""
    text, brings = "", False
    for choice in chunk.choices:
        delta = choice.delta
        if delta is not None:
            text += delta.content or delta.reasoning or delta.reasoning_content or ""
            brings = brings or bool(delta.tool_calls)
        text += choice.text or ""
    return text, brings or bool(text)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")


def arrivals(args: ServeBenchArgs, num_requests: int) -> Iterator[float]:
    """When requests are due, in seconds from the start. Gaps are gamma-distributed: of shape 1 that is a Poisson process."""
    rng = random.Random(args.seed + 1)
    rates = [_rate(args, i, num_requests) for i in range(num_requests)]
    gaps = (
        0.0 if rate == math.inf else rng.gammavariate(args.burstiness, 1 / (rate * args.burstiness)) for rate in rates
    )
    return itertools.accumulate(itertools.chain([0.0], itertools.islice(gaps, num_requests - 1)))


def _rate(args: ServeBenchArgs, number: int, num_requests: int) -> float:
    """Requests a second at that request."""
    start, end = args.ramp_up_start_rps, args.ramp_up_end_rps
    if start is None or end is None:
        return args.request_rate
    share = number / max(num_requests - 1, 1)
    return start + (end - start) * share if args.ramp_up_strategy == "linear" else start * (end / start) ** share
