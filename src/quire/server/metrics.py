"""Prometheus metrics under the names that dashboards for vLLM query, old names beside new ones. Label children are bound once."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily

from quire.core.request import Request
from quire.engine.ipc import Ready, Stats
from quire.engine.times import Times

PREFIX = "vllm:"
LABELS = ("model_name", "engine")
HANDLERS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models", "/version", "/load",
)  # fmt: skip
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
FINISH_REASONS = ("stop", "length", "abort", "error")
TTFT_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
TOKEN_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
REQUEST_BUCKETS_S = (  # vLLM's begin at 0.3
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
LENGTH_BUCKETS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
N_BUCKETS = (1, 2, 5, 10, 20)


class Metrics:
    """All series of one API process, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._values = (model_name, "0")
        self._engine_counts = Stats()
        self._num_new_tokens = 0  # generated since the last look
        self._make_engine_series()
        self._make_request_series()
        self._http_requests = Counter(
            "http_requests", "HTTP requests", ("handler", "method", "status"), registry=self.registry
        )

    def render(self, stats: Stats, num_held: int) -> bytes:
        """The exposition text. num_held: requests that wait for an engine to come up."""
        self._generation_tokens.inc(self._num_new_tokens)
        self._num_new_tokens = 0
        self._running.set(stats.running)
        self._waiting.set(stats.waiting + num_held)
        for gauge in self._usage:
            gauge.set(stats.kv_cache_usage)
        return generate_latest(self.registry)

    def count_engine(self, stats: Stats) -> None:
        """Takes over what an engine's counters grew by; a new engine's begin at 0 again."""
        for name, counter in self._engine_counters.items():
            before, now = getattr(self._engine_counts, name), getattr(stats, name)
            counter.inc(now - before if now >= before else now)
        self._engine_counts = stats

    def http(self, path: str, method: str, status: int) -> None:
        """An HTTP request was answered. Paths and methods that do not exist share one label each: clients cannot make series."""
        handler = path if path in HANDLERS else "none"
        self._http_requests.labels(handler, method if method in METHODS else "OTHER", f"{status // 100}xx").inc()

    def engine_up(self, ready: Ready) -> None:
        """Notes what the engine's cache is like."""
        config = ready.config
        info = {"block_size": config.block_size, "num_gpu_blocks": ready.num_blocks, "engine": "0"}
        info |= {"enable_prefix_caching": config.enable_prefix_caching, "cache_dtype": "auto"}
        info |= {"gpu_memory_utilization": config.gpu_memory_utilization}
        self._cache_info.clear()
        self._cache_info.labels(*(str(info[name]) for name in self._cache_labels)).set(1)

    def step(self, num_tokens: int) -> None:
        """A step computed this many tokens."""
        self._iteration_tokens.observe(num_tokens)

    def first_token(self, request: Request, times: Times, now: float, num_cached_tokens: int) -> None:
        """A request's first token came."""
        self._prompt_tokens.inc(len(request.prompt_token_ids))
        self._cached_tokens.inc(num_cached_tokens)
        self._time_to_first_token.observe(now - times.submitted_s)

    def next_tokens(self, num_tokens: int, gap_s: float) -> None:
        """More tokens came, so long after the last ones; in a batch each counts with its share."""
        if num_tokens:
            self._token_gaps.observe(gap_s / num_tokens, num_tokens)

    def tokens(self, num_tokens: int) -> None:
        """Generated tokens, first ones included."""
        self._num_new_tokens += num_tokens

    def finished(
        self,
        request: Request,
        times: Times,
        first_s: float | None,
        now: float,
        num_tokens: list[int],
        reasons: list[str],
    ) -> None:
        """A request has ended. num_tokens and reasons: one entry a sequence."""
        for reason in reasons:
            self._success[reason].inc()
        started_s = times.started_s or now
        first_s = first_s or now
        spans = {"e2e_request_latency": now - times.submitted_s, "request_queue_time": started_s - times.submitted_s}
        spans |= {"request_inference_time": now - started_s, "request_prefill_time": first_s - started_s}
        spans |= {"request_decode_time": now - first_s}
        for name, seconds in spans.items():
            self._spans[name].observe(max(0.0, seconds))
        if max(num_tokens) > 1:
            self._per_output_token.observe((now - first_s) / (max(num_tokens) - 1))
        self._observe_lengths(request, num_tokens)

    def given_up(self, reason: str, num_sequences: int) -> None:
        """Sequences that did not come to their end: their client left, or they failed."""
        self._success[reason].inc(num_sequences)

    def _observe_lengths(self, request: Request, num_tokens: list[int]) -> None:
        self._lengths["request_prompt_tokens"].observe(len(request.prompt_token_ids))
        self._lengths["request_generation_tokens"].observe(sum(num_tokens))
        self._lengths["request_max_num_generation_tokens"].observe(max(num_tokens))
        self._lengths["request_params_max_tokens"].observe(request.params.max_tokens or 0)
        self._params_n.observe(request.params.n)

    def _make_engine_series(self) -> None:
        self._running = self._gauge("num_requests_running", "Sequences that the engine computes")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait")
        usage = "Share of the KV cache in use, 0 to 1"
        self._usage = [self._gauge(name, usage) for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc")]
        self._engine_counters = {
            "prefix_cache_queries": self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache"),
            "prefix_cache_hits": self._counter("prefix_cache_hits", "Tokens found in the prefix cache"),
            "num_preemptions": self._counter("num_preemptions", "Times that a sequence lost its KV blocks"),
        }
        self.engine_deaths = self._counter("engine_deaths", "Engine processes that ended and were replaced")
        self._iteration_tokens = self._histogram("iteration_tokens_total", "Tokens computed in a step", STEP_BUCKETS)
        self._cache_labels = (
            "block_size", "cache_dtype", "enable_prefix_caching", "engine", "gpu_memory_utilization", "num_gpu_blocks",
        )  # fmt: skip
        self._cache_info = Gauge(
            PREFIX + "cache_config_info", "The KV cache's shape", self._cache_labels, registry=self.registry
        )

    def _make_request_series(self) -> None:
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that got a token")
        self._cached_tokens = self._counter("prompt_tokens_cached", "Of these, tokens found in the prefix cache")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens")

        success = Counter(
            PREFIX + "request_success", "Sequences ended", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._success = {reason: success.labels(*self._values, reason) for reason in FINISH_REASONS}
        self._time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "Until the first token", TTFT_BUCKETS_S
        )
        names = ("inter_token_latency_seconds", "time_per_output_token_seconds")
        self._token_gaps = TokenGaps(names, "Between two tokens", self._values)
        self.registry.register(self._token_gaps)
        self._per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean between two tokens of a request", TOKEN_BUCKETS_S
        )
        spans = {
            "e2e_request_latency": "From arrival to the end", "request_queue_time": "Waiting",
            "request_inference_time": "From the first step to the end", "request_prefill_time": "Until the first token, without waiting",
            "request_decode_time": "From the first to the last token",
        }  # fmt: skip
        self._spans = {
            name: self._histogram(f"{name}_seconds", text, REQUEST_BUCKETS_S) for name, text in spans.items()
        }
        lengths = {
            "request_prompt_tokens": "Prompt tokens", "request_generation_tokens": "Generated tokens",
            "request_max_num_generation_tokens": "Tokens of the longest sequence", "request_params_max_tokens": "max_tokens",
        }  # fmt: skip
        self._lengths = {name: self._histogram(name, text, LENGTH_BUCKETS) for name, text in lengths.items()}
        self._params_n = self._histogram("request_params_n", "n", N_BUCKETS)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, LABELS, registry=self.registry).labels(*self._values)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(PREFIX + name, text, LABELS, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, LABELS, buckets=buckets, registry=self.registry).labels(*self._values)


class TokenGaps:
    """One histogram under several names. prometheus_client's own takes a lock for each value of each name; this one is fed with
    every token.
    """

    def __init__(self, names: tuple[str, ...], text: str, values: tuple[str, ...]) -> None:
        self._names = names
        self._text = text
        self._values = values
        self._counts = [0] * (len(TOKEN_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float, count: int) -> None:
        """`count` gaps of that length."""
        self._counts[bisect_left(TOKEN_BUCKETS_S, seconds)] += count
        self._sum_s += seconds * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called for the exposition."""
        bounds = [*(str(float(bound)) for bound in TOKEN_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(self._counts)))
        for name in self._names:
            family = HistogramMetricFamily(PREFIX + name, self._text, labels=LABELS)
            family.add_metric(self._values, buckets, self._sum_s)
            yield family
