"""OpenTelemetry traces, if asked for: a span for each prompt, with the attributes that are common for language models.

Text of prompts and answers is never in them. The names are those of OpenTelemetry's conventions and, beside them, vLLM's.
"""

import contextvars
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from quire.core.request import Request
from quire.errors import ConfigError
from quire.server.history import PromptTrace, Trace
from quire.version import __version__

PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
INSTALL = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
SPAN_NAME = "llm_request"
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "n", "seed", "frequency_penalty", "presence_penalty")
# The W3C traceparent header of the request under way, and so the trace that its client has begun.
traceparent: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")


def check_endpoint(endpoint: str | None, has_package: Callable[[str], bool] | None = None) -> None:
    """Raises ConfigError when traces are wanted and cannot be sent."""
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--otlp-traces-endpoint is {endpoint!r}; an OTLP/HTTP address such as http://localhost:4318/v1/traces is needed"
        )
    if not all(map(has_package or _is_there, PACKAGES)):
        raise ConfigError(f"--otlp-traces-endpoint needs OpenTelemetry, which is not installed: {INSTALL}")


class Tracer:
    """Sends spans to a collector, from a thread of its own. endpoint: an OTLP/HTTP address; what it does not take is lost."""

    def __init__(self, endpoint: str) -> None:
        check_endpoint(endpoint)
        # An optional extra, and half a second of imports: only for those who want traces.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "quire", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("quire", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind, self._error = SpanKind.SERVER, StatusCode.ERROR

    def record(self, trace: Trace, requests: Sequence[Request], parent: str, failed: bool) -> None:
        """The spans of an HTTP request that has ended. parent: its traceparent header, "" = none."""
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        now_s, now_ns = time.monotonic(), time.time_ns()

        def ns(at_s: float) -> int:
            return now_ns - int((now_s - at_s) * 1e9)

        end_s = now_s if trace.ended_s is None else trace.ended_s
        for prompt, request in zip(trace.prompts, requests, strict=True):
            span = self._tracer.start_span(
                SPAN_NAME, context, self._kind, attributes(trace, prompt, request), start_time=ns(trace.arrived_s)
            )
            if prompt.times.first_token_s is not None:
                span.add_event("first token", timestamp=ns(prompt.times.first_token_s))
            if failed:
                span.set_status(self._error)
            span.end(ns(end_s))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def attributes(trace: Trace, prompt: PromptTrace, request: Request) -> dict[str, Any]:
    """Attributes of one prompt's span."""
    told = prompt.explain(trace.arrived_s, trace.ended_s or time.monotonic(), True)
    parts = told["parts_s"]
    num_in, num_out = prompt.num_prompt_tokens, sum(prompt.num_tokens)
    found = {
        "gen_ai.operation.name": "text_completion" if trace.id.startswith("cmpl") else "chat",
        "gen_ai.system": "quire",
        "gen_ai.request.model": trace.model,
        "gen_ai.response.model": trace.model,
        "gen_ai.response.id": trace.id,
        "gen_ai.request.id": trace.request_id,
        "gen_ai.response.finish_reasons": [reason for _, reason in sorted(prompt.reasons.items())],
        "gen_ai.usage.input_tokens": num_in,
        "gen_ai.usage.output_tokens": num_out,
        "gen_ai.usage.prompt_tokens": num_in,
        "gen_ai.usage.completion_tokens": num_out,
        "gen_ai.usage.cached_tokens": prompt.num_cached_tokens,
        "gen_ai.latency.e2e": told["total_s"],
        "gen_ai.latency.time_in_queue": parts["queue"],
        "gen_ai.latency.time_in_model_prefill": parts["prefill"],
        "gen_ai.latency.time_in_model_decode": parts["decode"],
    }
    if prompt.times.first_token_s is not None:
        found["gen_ai.latency.time_to_first_token"] = prompt.times.first_token_s - trace.arrived_s
    values = {name: getattr(request.params, name) for name in SAMPLING}
    # A drawn seed may have all 64 bits; an attribute's integer is signed.
    values["seed"] = None if values["seed"] is None else str(values["seed"])
    return {**found, **{f"gen_ai.request.{name}": value for name, value in values.items() if value is not None}}


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
