"""History: where the time of the latest requests went."""

import time
from dataclasses import dataclass, field
from typing import Any

from quire.engine.times import Times

MAX_TRACES = 1000


@dataclass
class PromptTrace:
    """One prompt of a request. num_tokens: generated, by sequence; reasons: why each ended."""

    times: Times
    num_prompt_tokens: int
    num_tokens: list[int]
    reasons: dict[int, str]
    num_cached_tokens: int = 0

    def explain(self, arrived_s: float, end_s: float, ended: bool) -> dict[str, Any]:
        """Parts in seconds, which sum to the whole."""
        parts = {"tokenize": self.times.submitted_s - arrived_s, **self.times.parts(end_s, ended)}
        return {
            "total_s": end_s - arrived_s,
            "parts_s": parts,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_generated_tokens": self.num_tokens,
            "finish_reasons": [self.reasons.get(index) for index in range(len(self.num_tokens))],
            "num_interruptions": self.times.interruptions,
        }


@dataclass
class Trace:
    """One HTTP request.

    id          of the answer
    request_id  its X-Request-Id, which the client may have chosen
    arrived_s   in seconds of the monotonic clock; ended_s likewise, None while it is under way
    """

    id: str
    request_id: str
    model: str
    created: int
    arrived_s: float
    ended_s: float | None = None
    prompts: list[PromptTrace] = field(default_factory=list)

    def end(self) -> None:
        """The answer has been sent, or nobody waits for it any more."""
        self.ended_s = time.monotonic()

    def explain(self) -> dict[str, Any]:
        """What clients are told."""
        ended = self.ended_s is not None
        end_s = time.monotonic() if self.ended_s is None else self.ended_s
        return {
            "id": self.id,
            "object": "request.explanation",
            "request_id": self.request_id,
            "model": self.model,
            "created": self.created,
            "status": "ended" if ended else "running",
            "total_s": end_s - self.arrived_s,
            "prompts": [prompt.explain(self.arrived_s, end_s, ended) for prompt in self.prompts],
        }


class History:
    """The latest traces, the oldest forgotten first."""

    def __init__(self, max_traces: int = MAX_TRACES) -> None:
        self._traces: dict[str, Trace] = {}
        self._max_traces = max_traces

    def add(self, trace: Trace) -> None:
        """A request begins."""
        while len(self._traces) >= self._max_traces:
            del self._traces[next(iter(self._traces))]
        self._traces[trace.id] = trace

    def find(self, name: str) -> Trace | None:
        """By the answer's id, or the latest of an X-Request-Id."""
        if name in self._traces:
            return self._traces[name]
        return next((trace for trace in reversed(self._traces.values()) if trace.request_id == name), None)
