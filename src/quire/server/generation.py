"""Generation: what one HTTP request asks of the engine, from its prompts to their outputs in text."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from quire.core.outputs import NO_TOKEN_ALLOWED_ERROR, NOT_FINITE_ERROR, EngineOutput
from quire.engine.client import Stream
from quire.engine.outbox import joined
from quire.engine.stream import RequestStream
from quire.errors import InvalidRequest, NumericalError, QuireError, ServerError
from quire.outputs import RequestOutput
from quire.server.errors import RequestTimedOut
from quire.server.history import PromptTrace, Trace
from quire.server.serving import Serving
from quire.server.tracing import traceparent


@dataclass
class Run:
    """One prompt of the request.

    number      its place among the prompts
    num_tokens  generated so far, by sequence; reasons likewise, why each ended
    """

    number: int
    stream: RequestStream
    first_s: float | None = None
    last_s: dict[int, float] = field(default_factory=dict)
    num_tokens: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_tokens = [0] * self.stream.request.params.n


class Generation:
    """All prompts of one HTTP request, under way. Close it: what has not ended then leaves the engine."""

    def __init__(self, serving: Serving, streams: Sequence[RequestStream], trace: Trace) -> None:
        self.runs = [Run(number, stream) for number, stream in enumerate(streams)]
        self._by_id = {run.stream.request.id: run for run in self.runs}
        self._metrics = serving.metrics
        self._failed = False
        self._closed = False
        self._stream: Stream = serving.client.submit([stream.request for stream in streams])
        self._trace = trace
        self._tracer = serving.tracer
        limit_s = serving.args.request_timeout
        self._timer = (
            None if limit_s is None else asyncio.get_running_loop().call_later(limit_s, self._time_out, limit_s)
        )
        for run in self.runs:
            serving.log_request(trace.id, run.stream.request, run.stream.prompt)
        trace.prompts = [self._traced(run) for run in self.runs]
        serving.history.add(trace)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(run.stream.request.prompt_token_ids) for run in self.runs)

    async def outputs(self) -> AsyncIterator[tuple[Run, RequestOutput]]:
        """What is new, as it comes; in FINAL_ONLY mode one output a prompt. Raises QuireError."""
        async for outputs in self._stream:
            for output in joined(outputs):
                run = self._by_id[output.request_id]
                result = self._take(run, output)
                if result is not None:
                    yield run, result

    async def results(self) -> list[RequestOutput]:
        """The whole of each prompt's output, in order. For FINAL_ONLY mode. Raises QuireError."""
        results = {run.number: result async for run, result in self.outputs()}
        return [results[run.number] for run in self.runs]

    def close(self) -> None:
        """Gives up what has not ended. Harmless when all has."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._trace.end()
        self._stream.close()
        if self._tracer is not None:
            requests = [run.stream.request for run in self.runs]
            self._tracer.record(self._trace, requests, traceparent.get(), self._failed)
        for run in self.runs:
            self._metrics.given_up("error" if self._failed else "abort", len(run.num_tokens) - len(run.reasons))

    def _time_out(self, limit_s: float) -> None:
        self._failed = True
        self._stream.fail(RequestTimedOut(f"the request took longer than the {limit_s:g} s that this server allows"))

    def _take(self, run: Run, output: EngineOutput) -> RequestOutput | None:
        if output.finish_reason == "error":
            self._failed = True
            raise error_of(output)
        result = run.stream.push(output)
        run.num_tokens[output.index] += len(output.token_ids)
        self._observe(run, output)
        reason = run.stream.finish_reason(output.index)
        if reason is not None and output.index not in run.reasons:
            run.reasons[output.index] = reason
            if output.finish_reason is None:
                self._stream.stop(output.request_id, output.index)  # a stop string, of which the engine knows nothing
            self._observe_end(run)
        return result

    def _traced(self, run: Run) -> PromptTrace:
        request = run.stream.request
        return PromptTrace(self._stream.times[request.id], len(request.prompt_token_ids), run.num_tokens, run.reasons)

    def _observe(self, run: Run, output: EngineOutput) -> None:
        now = time.monotonic()
        request, times = run.stream.request, self._stream.times[output.request_id]
        self._metrics.tokens(len(output.token_ids))
        if run.first_s is None and output.token_ids:
            run.first_s = now
            self._trace.prompts[run.number].num_cached_tokens = output.num_cached_tokens
            self._metrics.first_token(request, times, now, output.num_cached_tokens)
        elif output.index in run.last_s:
            self._metrics.next_tokens(len(output.token_ids), now - run.last_s[output.index])
        run.last_s[output.index] = now

    def _observe_end(self, run: Run) -> None:
        if len(run.reasons) == len(run.num_tokens):
            request = run.stream.request
            times = self._stream.times[request.id]
            reasons = list(run.reasons.values())
            self._metrics.finished(request, times, run.first_s, time.monotonic(), run.num_tokens, reasons)


def error_of(output: EngineOutput) -> QuireError:
    """The error of a sequence that failed alone."""
    if output.error == NO_TOKEN_ALLOWED_ERROR:
        return InvalidRequest(output.error, "allowed_token_ids")
    return (NumericalError if output.error == NOT_FINITE_ERROR else ServerError)(output.error or "the model failed")
