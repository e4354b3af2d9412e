"""Options, data sets and arrivals of `quire bench serve`, without a server."""

import json
import math
import random
import statistics
from collections import Counter

import numpy
import pytest

from quire.bench.datasets import EstimatedTexts, TokenizedTexts, samples
from quire.bench.load import Record, arrivals, body_of
from quire.bench.options import ServeBenchArgs
from quire.bench.report import percentile, summarize
from quire.errors import ConfigError
from quire.hub import resolve_model
from quire.text.tokenizer import Tokenizer

WORDS = EstimatedTexts(1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"goodput": ["ttft"]}, "--goodput"), ({"goodput": ["itl:5"]}, "--goodput"), ({"request_rate": 0}, "--request-rate"),
        ({"burstiness": -1}, "--burstiness"), ({"num_prompts": 0}, "--num-prompts"), ({"header": ["x"]}, "--header"),
        ({"metric_percentiles": "99,101"}, "--metric-percentiles"), ({"percentile_metrics": "ttfb"}, "--percentile-metrics"),
        ({"dataset_name": "sharegpt"}, "--dataset-path"), ({"base_url": "localhost:8000"}, "--base-url"),
        ({"ramp_up_strategy": "linear"}, "--ramp-up-start-rps"), ({"ramp_up_start_rps": 1.0}, "--ramp-up-strategy"),
        ({"backend": "openai-chat", "endpoint": "/v1/completions"}, "--endpoint"), ({"random_range_ratio": 1.0}, "--random-range-ratio"),
        ({"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 2.0, "request_rate": 3.0}, "--request-rate"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(given, told):
    with pytest.raises(ConfigError, match=told):
        ServeBenchArgs(**given)


def test_the_endpoint_follows_the_data():
    assert ServeBenchArgs().path == "/v1/chat/completions"
    assert ServeBenchArgs(dataset_name="random").path == ServeBenchArgs(backend="vllm").path == "/v1/completions"
    assert ServeBenchArgs(dataset_name="random", backend="openai-chat").path == "/v1/chat/completions"
    args = ServeBenchArgs(dataset_name="random", base_url="http://h:1/v1/")
    assert args.url == "http://h:1"
    assert body_of(args, "m", samples(args, WORDS)[0])["max_tokens"] == 128


def test_poisson_arrivals_have_exponential_gaps():
    args = ServeBenchArgs(request_rate=10.0)
    times = list(arrivals(args, 20_001))
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert times[0] == 0 and len(times) == 20_001
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(0.1, rel=0.05)
    assert times == list(arrivals(args, 20_001)) != list(arrivals(ServeBenchArgs(request_rate=10.0, seed=1), 20_001))


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_changes_the_spread_and_not_the_rate(burstiness):
    times = list(arrivals(ServeBenchArgs(request_rate=10.0, burstiness=burstiness), 20_001))
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_the_rate_ramps_up(strategy):
    args = ServeBenchArgs(ramp_up_strategy=strategy, ramp_up_start_rps=1.0, ramp_up_end_rps=100.0, burstiness=1e9)
    times = list(arrivals(args, 101))
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert gaps[0] == pytest.approx(1.0, rel=0.01) and gaps[-1] == pytest.approx(0.01, rel=0.1)
    assert gaps[50] == pytest.approx(1 / (50.5 if strategy == "linear" else 10.0), rel=0.01)
    assert all(b < a for a, b in zip(gaps, gaps[1:]))


def test_everything_at_once_without_a_rate():
    assert list(arrivals(ServeBenchArgs(), 5)) == [0.0] * 5


def test_chats_are_log_normal_and_random_lengths_are_told_ones():
    found = samples(ServeBenchArgs(num_prompts=4000), WORDS)
    assert statistics.fmean(s.num_tokens for s in found) == pytest.approx(220, rel=0.06)
    assert statistics.fmean(s.max_tokens for s in found) == pytest.approx(200, rel=0.06)
    logs = [math.log(s.max_tokens) for s in found]
    assert statistics.pstdev(logs) == pytest.approx(0.8, rel=0.05)
    fixed = samples(
        ServeBenchArgs(dataset_name="random", num_prompts=3, random_input_len=50, random_output_len=7), WORDS
    )
    assert {(len(s.prompt.split()), s.max_tokens) for s in fixed} == {(50, 7)} and len({s.prompt for s in fixed}) == 3
    spread = samples(
        ServeBenchArgs(dataset_name="random", num_prompts=500, random_input_len=100, random_range_ratio=0.5), WORDS
    )
    assert {50, 150} >= {min(s.num_tokens for s in spread) // 5 * 5, -(-max(s.num_tokens for s in spread) // 5) * 5}


@pytest.mark.parametrize("name", ["prefix_repetition", "shared-prefix"])
def test_prompts_share_beginnings(name):
    args = ServeBenchArgs(
        dataset_name=name, num_prompts=20, prefix_repetition_num_prefixes=4, prefix_repetition_prefix_len=30
    )
    beginnings = Counter(" ".join(s.prompt.split()[:30]) for s in samples(args, WORDS))
    assert sorted(beginnings.values()) == [5, 5, 5, 5]


def test_prompts_have_exact_lengths_with_a_tokenizer():
    tokenizer = Tokenizer.from_dir(resolve_model("builtin:tiny"))
    args = ServeBenchArgs(dataset_name="random", num_prompts=30, random_input_len=64)
    found = samples(args, TokenizedTexts(tokenizer))
    lengths = [len(tokenizer.encode(s.prompt, add_special_tokens=False)) for s in found]
    assert sum(n == 64 for n in lengths) >= 24 and all(abs(n - 64) <= 2 for n in lengths), lengths


def test_sharegpt_is_read_as_it_is(tmp_path):
    talk = [
        {"from": "human", "value": "a b c d e"},
        {"from": "gpt", "value": "1 2 3 4 5 6"},
        {"from": "human", "value": "more"},
    ]
    entries = [
        {"conversations": talk},
        {"conversations": talk[:1]},
        {"conversations": [{"value": "a b"}, {"value": "c"}]},
        {"id": 1},
    ]
    (path := tmp_path / "talks.json").write_text(json.dumps(entries))
    found = samples(ServeBenchArgs(dataset_name="sharegpt", dataset_path=str(path), num_prompts=3), WORDS)
    assert {(s.prompt, s.max_tokens) for s in found} == {("a b c d e", 6)} and len(found) == 3
    path.write_text("{}")
    with pytest.raises(ConfigError, match="list of conversations"):
        samples(ServeBenchArgs(dataset_name="sharegpt", dataset_path=str(path)), WORDS)


def test_custom_lines_are_prompts_or_messages(tmp_path):
    lines = [{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}], "output_tokens": 9}]
    (path := tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    args = ServeBenchArgs(dataset_name="custom", dataset_path=str(path), num_prompts=2, backend="openai-chat")
    found = samples(args, WORDS)
    assert [s.max_tokens for s in found] == [256, 256]
    assert body_of(args, "m", found[0])["messages"][0]["content"] == "one"
    assert body_of(args, "m", found[1])["messages"] == lines[1]["messages"]
    with pytest.raises(ConfigError, match="line 1.*output_tokens"):
        samples(ServeBenchArgs(dataset_name="custom", dataset_path=str(path), custom_output_len=-1), WORDS)
    with pytest.raises(ConfigError, match="No such file"):
        samples(ServeBenchArgs(dataset_name="custom", dataset_path=str(tmp_path / "none")), WORDS)


def test_percentiles_are_numpys():
    rng = random.Random(0)
    for size in (1, 2, 3, 100, 101):
        values = [rng.random() for _ in range(size)]
        for share in (0, 1, 50, 90, 99, 99.9, 100):
            assert percentile(values, share) == pytest.approx(float(numpy.percentile(values, share)))


def test_figures_of_known_records():
    """Two requests of 4 tokens: 100 ms to the first, then 10 ms each; the second begins a second later. A third one fails."""
    records = [Record(5, at, at + 0.2, 4, [at + 0.1 + 0.01 * k for k in range(4)], ["x"] * 4) for at in (0.0, 1.0)]
    records.append(Record(5, 1.1, 1.15, error="gone"))
    found = summarize(records, 2.0, metrics=["ttft", "tpot", "itl", "e2el"], percentiles=[99], limits_ms={})
    assert (found["completed"], found["failed"], found["errors"]) == (2, 1, {"gone": 1})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (10, 8)
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (1.0, 4.0, 9.0)
    assert (found["max_output_tokens_per_s"], found["max_concurrent_requests"]) == (4.0, 2)
    for name, value in (("ttft", 100.0), ("tpot", 10.0), ("itl", 10.0), ("e2el", 130.0)):
        for kind in ("mean", "median", "p99"):
            assert found[f"{kind}_{name}_ms"] == pytest.approx(value)
        assert found[f"std_{name}_ms"] == pytest.approx(0.0, abs=1e-9)


def test_nothing_measured_is_none():
    found = summarize([Record(1, 0.0, 1.0, error="x")], 1.0, metrics=["ttft"], percentiles=[99], limits_ms={})
    assert found["mean_ttft_ms"] is None and found["p99_ttft_ms"] is None and found["request_goodput"] is None
