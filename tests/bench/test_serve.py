"""`quire bench serve` against a server with a script: what it measures is what the server did."""

import json
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from scripted_server import CHAT, Answer, ScriptedServer

from quire.bench.options import ServeBenchArgs, with_meant_dataset
from quire.cli.main import main

QUICK = ["--num-warmups", "0", "--disable-tqdm"]
SHORT = ["--chat-input-len", "20", "--chat-output-len", "4"]
NUM_CALIBRATING = 2


def bench(server: ScriptedServer, folder: Path, *words: str, code: int = 0) -> dict:
    path = folder / "result.json"
    saving = ["--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json"]
    short = [] if "--dataset-name" in words else SHORT
    assert main(["bench", "serve", "--base-url", server.url, *QUICK, *short, *saving, *words]) == code
    return json.loads(path.read_text())


def test_latencies_are_those_of_the_script(tmp_path):
    """Each measured time is compared with the moment at which the server wrote: the client may be late, but never early."""
    gaps_s = (0.05, 0.02, 0.03, 0.02)
    quick = Answer()
    with ScriptedServer(quick, quick, Answer(gaps_s)) as server:
        found = bench(
            server,
            tmp_path,
            "--num-prompts",
            "8",
            "--max-concurrency",
            "1",
            "--percentile-metrics",
            "ttft,tpot,itl,e2el",
        )
    seen = server.measured[NUM_CALIBRATING:]
    assert found["completed"] == len(seen) == 8
    late_ms = []
    for request, real in zip(found["requests"], seen, strict=True):
        truths = {"ttft_ms": real.written_s[0] - real.arrived_s, "e2el_ms": real.written_s[-1] - real.arrived_s}
        late_ms += [request[name] - truth_s * 1000 for name, truth_s in truths.items()]
        written = zip(real.written_s, real.written_s[1:])
        for gap_ms, (before_s, after_s) in zip(request["itls_ms"], written, strict=True):
            assert gap_ms == pytest.approx((after_s - before_s) * 1000, abs=30)
    assert min(late_ms) > 0 and statistics.median(late_ms) < 20, late_ms
    assert found["median_ttft_ms"] >= 50 and found["mean_e2el_ms"] >= 120
    # Eight tokens in four pieces: the time after the first piece is that of seven tokens.
    requests = found["requests"]
    tpot = statistics.fmean((r["e2el_ms"] - r["ttft_ms"]) / 7 for r in requests)
    assert found["mean_tpot_ms"] == pytest.approx(tpot)
    assert found["total_output_tokens"] == 64 and found["output_throughput"] == pytest.approx(64 / found["duration"])


def test_goodput_counts_requests_within_all_limits(tmp_path):
    quick, slow = Answer((0.0, 0.0)), Answer((0.4, 0.0))
    with ScriptedServer(quick, quick, slow, quick, quick, slow, quick) as server:
        found = bench(
            server, tmp_path, "--num-prompts", "5", "--max-concurrency", "1", "--goodput", "ttft:300", "tpot:300"
        )
    assert found["request_goodput"] * found["duration"] == pytest.approx(3)


def test_no_more_requests_than_allowed_are_under_way(tmp_path):
    with ScriptedServer(Answer((0.01,))) as server:
        found = bench(server, tmp_path, "--num-prompts", "12", "--max-concurrency", "3")
    assert server.peak == 3 and found["completed"] == 12
    assert len({seen.connection for seen in server.seen}) <= 4  # kept and used again


def test_the_rate_is_kept(tmp_path):
    """Even gaps (a large burstiness) of 20 ms; the server sees them."""
    with ScriptedServer() as server:
        bench(server, tmp_path, "--num-prompts", "11", "--request-rate", "50", "--burstiness", "1e6")
    times = [seen.arrived_s for seen in server.measured[NUM_CALIBRATING:]]
    assert times[-1] - times[0] == pytest.approx(0.2, abs=0.1)


def test_failures_are_counted_and_told(tmp_path, capsys):
    answers = [
        Answer(), Answer(),
        Answer(status=429, body={"error": {"message": "too many"}}), Answer(cut=True), Answer(error="lost"), Answer(),
    ]  # fmt: skip
    with ScriptedServer(*answers) as server:
        found = bench(server, tmp_path, "--num-prompts", "4", "--max-concurrency", "1", code=1)
    assert (found["completed"], found["failed"]) == (1, 3)
    told = capsys.readouterr().err
    assert "HTTP 429: too many" in told and "the server closed the connection" in told and "lost" in told


def test_a_server_without_usage_is_counted_by_pieces(tmp_path):
    with ScriptedServer(Answer(), Answer(), Answer((0.0, 0.0, 0.0), usage=False)) as server:
        found = bench(server, tmp_path, "--num-prompts", "1")
    assert found["total_output_tokens"] == 3


def test_a_server_that_closes_connections_is_measured_too(tmp_path):
    with ScriptedServer(Answer((0.0, 0.01)), keep_alive=False) as server:
        found = bench(server, tmp_path, "--num-prompts", "4")
    assert found["completed"] == 4 and len({seen.connection for seen in server.seen}) == 6


def test_requests_carry_what_was_asked_for(tmp_path):
    words = [
        "--api-key",
        "k",
        "--header",
        "X-Team=a b",
        "--ignore-eos",
        "--temperature",
        "0",
        "--extra-body",
        '{"min_p": 0.1}',
    ]
    with ScriptedServer() as server:
        bench(server, tmp_path, "--num-prompts", "1", *words)
        found = bench(server, tmp_path, "--num-prompts", "1", "--dataset-name", "random", "--model", "mine", *words)
    seen = server.seen[NUM_CALIBRATING]
    assert seen.path == CHAT and seen.headers["authorization"] == "Bearer k" and seen.headers["x-team"] == "a b"
    assert (seen.body["model"], seen.body["ignore_eos"], seen.body["temperature"]) == ("stub", True, 0.0)
    assert seen.body["min_p"] == 0.1 and seen.body["stream_options"] == {"include_usage": True}
    last = server.seen[-1]
    assert last.path == "/v1/completions" and (last.body["model"], last.body["max_tokens"]) == ("mine", 128)
    assert "k" not in {found.get("api_key"), found.get("header")} and "Bearer" not in json.dumps(found)


def test_lengths_follow_the_servers_count(tmp_path):
    with ScriptedServer(tokens_per_word=2.5) as server:
        found = bench(server, tmp_path, "--num-prompts", "1", "--dataset-name", "random", "--random-input-len", "500")
    assert found["total_input_tokens"] == 500 + 7


def test_table_and_picture(tmp_path, capsys):
    picture = tmp_path / "run.svg"
    with ScriptedServer(Answer((0.0, 0.01))) as server:
        found = bench(server, tmp_path, "--num-prompts", "5", "--metric-percentiles", "50,99.9", "--plot", str(picture))
    table = capsys.readouterr().out
    for words in (
        "Successful requests:",
        "Output token throughput (tok/s):",
        "Mean TTFT (ms):",
        "P99.9 ITL (ms):",
        "Median E2EL (ms):",
    ):
        assert words in table
    assert f"{'Median TTFT (ms):':<40} {found['median_ttft_ms']:<10.2f}" in table
    drawn = ElementTree.parse(picture).getroot()
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_results_can_be_appended(tmp_path):
    words = [
        "--append-result",
        "--result-dir",
        str(tmp_path),
        "--result-filename",
        "all.jsonl",
        "--metadata",
        "gpu=none",
    ]
    with ScriptedServer() as server:
        for _ in range(2):
            assert main(["bench", "serve", "--base-url", server.url, *QUICK, "--num-prompts", "1", *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["completed"] for line in lines] == [1, 1] and lines[0]["gpu"] == "none"


def test_no_server_and_a_refusing_one_are_said(capsys):
    assert main(["bench", "serve", "--port", "9", *QUICK]) == 2
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err
    with ScriptedServer(Answer(status=404, body={"error": {"message": "no such model"}})) as server:
        assert main(["bench", "serve", "--base-url", server.url, "--model", "x", *QUICK]) == 2
    assert "HTTP 404: no such model" in capsys.readouterr().err


def test_options_of_a_data_set_name_it():
    """As vLLM's users type, whose default is random."""
    given = {"random_input_len": 9}
    assert with_meant_dataset(ServeBenchArgs(**given), given).dataset_name == "random"
    assert with_meant_dataset(ServeBenchArgs(seed=1), {"seed": 1}).dataset_name == "chat"
    given["dataset_name"] = "chat"
    assert with_meant_dataset(ServeBenchArgs(**given), given).dataset_name == "chat"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--dataset-name", "chat", "--random-input-len", "9"],
            "--random-input-len is for --dataset-name random, and the data set is chat",
        ),
        (
            ["--random-input-len", "9", "--chat-input-len", "9"],
            "--random-input-len is for --dataset-name random, and the data set is chat",
        ),
        (["--dataset-name", "random", "--prefix-repetition-output-len", "9"], "--dataset-name prefix_repetition"),
        (["--dataset-name", "random", "--dataset-path", "x"], "random is made up"),
        (["--result-dir", "x"], "--save-result"),
        (["--metadata", "a=b"], "--save-result"),
        (["--burstiness", "0.5"], "--request-rate"),
    ],
)
def test_options_that_would_do_nothing_are_refused(capsys, words, told):
    assert main(["bench", "serve", *QUICK, *words]) == 2
    assert told in capsys.readouterr().err


def test_the_usual_burstiness_is_taken_at_any_rate(tmp_path):
    """As scripts have it that try many rates, inf the last of them."""
    for rate in ("1e6", "inf"):
        with ScriptedServer() as server:
            words = ["--num-prompts", "1", "--request-rate", rate, "--burstiness", "1.0"]
            assert bench(server, tmp_path, *words)["completed"] == 1


def test_options_of_a_data_set_are_taken_under_both_its_names(tmp_path):
    for name in ("prefix_repetition", "shared-prefix"):
        with ScriptedServer() as server:
            words = [
                "--dataset-name",
                name,
                "--prefix-repetition-prefix-len",
                "9",
                "--prefix-repetition-suffix-len",
                "9",
            ]
            assert bench(server, tmp_path, "--num-prompts", "1", *words)["completed"] == 1
