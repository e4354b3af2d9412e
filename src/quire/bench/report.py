"""Records of a run -> its figures: a dictionary with vLLM's names, and the table that people know."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from quire.bench.load import Record

TITLES = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}
WIDTH = 50


def summarize(
    records: Sequence[Record],
    elapsed_s: float,
    *,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    limits_ms: dict[str, float],
) -> dict[str, Any]:
    """The figures. Latencies are of requests that came to their end. limits_ms: of the goodput, none = no goodput."""
    good = [record for record in records if record.error is None]
    num_in, num_out = sum(r.num_prompt_tokens for r in good), sum(r.num_output_tokens for r in good)
    summary: dict[str, Any] = {
        "duration": elapsed_s,
        "completed": len(good),
        "failed": len(records) - len(good),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(good) / elapsed_s,
        "request_goodput": sum(within(r, limits_ms) for r in good) / elapsed_s if limits_ms else None,
        "output_throughput": num_out / elapsed_s,
        "total_token_throughput": (num_in + num_out) / elapsed_s,
        "max_output_tokens_per_s": max(per_second(good).values(), default=0.0),
        "max_concurrent_requests": max((count for _, count in concurrency(records)), default=0),
        "errors": dict(Counter(r.error for r in records if r.error is not None).most_common(5)),
    }
    for name in metrics:
        summary |= _latency(name, latencies_ms(good, name), percentiles)
    return summary


def latencies_ms(records: Sequence[Record], name: str) -> list[float]:
    """All values of a latency; TPOT has none for requests of a single token."""
    if name == "itl":
        return [gap * 1000 for record in records for gap in record.itl_s]
    chosen = [r for r in records if name != "tpot" or r.num_output_tokens > 1]
    return [getattr(record, f"{name}_s") * 1000 for record in chosen]


def within(record: Record, limits_ms: dict[str, float]) -> bool:
    """Whether a request kept all limits."""
    return all(getattr(record, f"{name}_s") * 1000 <= limit for name, limit in limits_ms.items())


def percentile(values: Sequence[float], share: float) -> float:
    """The `share` % point with linear interpolation, as numpy's default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def per_second(records: Sequence[Record]) -> dict[int, float]:
    """Output tokens of each second since the first request; a request's tokens are spread over its pieces of text."""
    origin = min((record.began_s for record in records), default=0.0)
    counts: Counter[int] = Counter()
    for record in records:
        share = record.num_output_tokens / len(record.token_s)
        for token_s in record.token_s:
            counts[int(token_s - origin)] += share  # type: ignore[assignment]
    return dict(counts)


def concurrency(records: Sequence[Record]) -> list[tuple[float, int]]:
    """(time, requests under way) at each change."""
    changes = sorted([(r.began_s, 1) for r in records] + [(r.ended_s, -1) for r in records])
    steps, count = [], 0
    for at_s, change in changes:
        count += change
        steps.append((at_s, count))
    return steps


def table(
    summary: dict[str, Any], metrics: Sequence[str], percentiles: Sequence[float], heading: Sequence[tuple[str, Any]]
) -> str:
    """The table, in the words and widths of `vllm bench serve`, which scripts read."""
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", summary["completed"]),
        ("Failed requests:", summary["failed"]),
        *heading,
    ]
    rows += [
        ("Benchmark duration (s):", summary["duration"]),
        ("Total input tokens:", summary["total_input_tokens"]),
        ("Total generated tokens:", summary["total_output_tokens"]),
        ("Request throughput (req/s):", summary["request_throughput"]),
    ]
    if summary["request_goodput"] is not None:
        rows.append(("Request goodput (req/s):", summary["request_goodput"]))
    rows += [
        ("Output token throughput (tok/s):", summary["output_throughput"]),
        ("Peak output token throughput (tok/s):", summary["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", summary["max_concurrent_requests"]),
        ("Total token throughput (tok/s):", summary["total_token_throughput"]),
    ]
    lines = [" Serving Benchmark Result ".center(WIDTH, "="), *(_row(text, value) for text, value in rows)]
    for name in metrics:
        title, short = TITLES[name]
        lines.append(title.center(WIDTH, "-"))
        wanted = [("Mean", "mean"), ("Median", "median"), *((f"P{p:g}", f"p{p:g}") for p in percentiles)]
        lines += [_row(f"{text} {short} (ms):", summary[f"{key}_{name}_ms"]) for text, key in wanted]
    return "\n".join([*lines, "=" * WIDTH])


def _row(text: str, value: Any) -> str:
    return f"{text:<40} {value:<10.2f}" if isinstance(value, float) else f"{text:<40} {value!s:<10}"


def _latency(name: str, values: list[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    """None where nothing was measured: 0 would be a lie."""
    found: dict[str, float | None] = dict.fromkeys((f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms"))
    found |= dict.fromkeys(f"p{p:g}_{name}_ms" for p in percentiles)
    if values:
        found[f"mean_{name}_ms"] = statistics.fmean(values)
        found[f"median_{name}_ms"] = statistics.median(values)
        found[f"std_{name}_ms"] = statistics.pstdev(values)
        found |= {f"p{p:g}_{name}_ms": percentile(values, p) for p in percentiles}
    return found
