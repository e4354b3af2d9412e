"""The comparison with peers: floors against published ones, shares, pieces that add up, and a whole run beside fake peers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

from quire.bench.datasets import TokenizedTexts
from quire.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).with_name("fake_peers")
sys.path.insert(0, str(ROOT / "benchmarks"))

import shapes  # noqa: E402
import versus_floors  # noqa: E402
import versus_peers  # noqa: E402
import versus_table  # noqa: E402
from versus_tokenizer import write_tokenizer  # noqa: E402
from versus_workloads import FULL, TINY, WORKLOADS  # noqa: E402

H200 = versus_floors.Rates(4.3e12, 790e12)


@pytest.mark.parametrize(
    ("shape", "batch", "milliseconds"),
    [
        ("0.5b", 1, 0.233),
        ("0.5b", 256, 1.07),
        ("1.5b", 1, 0.725),
        ("1.5b", 64, 1.155),
        ("7b", 1, 3.30),
        ("7b", 256, 8.08),
    ],
)
def test_floor_of_a_decoding_step(shape, batch, milliseconds):
    """At a context of 1,024 tokens: figures computed by hand for an H200, rounded to their last digit."""
    sizes = versus_floors.sizes_of(shape)
    assert 1e3 * versus_floors.decode_step_s(sizes, batch, 1024, H200) == pytest.approx(milliseconds, rel=0.02)


def test_floor_of_prefill_and_chat():
    sizes = versus_floors.sizes_of("7b")
    assert 1e3 * versus_floors.prefill_s(sizes, [8192], H200) == pytest.approx(152, rel=0.02)
    assert versus_floors.floors("7b", H200, FULL)["chat"] == pytest.approx(117, rel=0.05)


def row(workload, unit, ours, vllm, sglang, **more):
    made = {"shape": "7b", "workload": workload, "unit": unit, "ours": ours, "vllm": vllm, "sglang": sglang, **more}
    versus_table.finish(made, {"vllm": 50.0, "sglang": 28.0})
    return made


def test_a_ratio_is_to_the_better_peer_and_above_one_where_ours_is_better():
    assert row("decode_b1", "ms", 2.0, 5.0, 4.0)["ratio"] == 2.0
    assert row("chat", "req/s", 90.0, 40.0, 60.0)["ratio"] == 1.5
    assert row("chat", "req/s", 30.0, None, 60.0)["ratio"] == 0.5
    assert row("chat", "req/s", 30.0, None, None)["ratio"] is None
    assert row("chat", "req/s", None, 40.0, 60.0)["ratio"] is None
    assert row("start_warm", "s", 4.0, None, None)["ratio"] == 7.0  # the best start that a peer had
    assert row("sampling_cost", "% over greedy", 25.0, None, None)["ratio"] == 0.8
    assert row("decode_b1", "ms", 2.0, 5.0, 4.0, floor=1.0)["floor_share"] == 0.5
    assert row("prefill", "tok/s", 30.0, 20.0, 4.0, floor=120.0)["floor_share"] == 0.25


def test_the_table_of_a_document_has_a_line_a_workload_and_a_cell_a_shape():
    rows = [
        row("decode_b1", "ms", 2.0, 5.0, 4.0, floor=1.0),
        row("chat", "req/s", 30.0, None, None),
        row("prefill", "tok/s", None, 1.0, 2.0),
    ]
    assert versus_table.markdown(rows).splitlines()[2:] == [
        "| `decode_b1`, ms | 2 · 4 = **2.00x** (50 %) |", "| `chat`, req/s | 30 |",
    ]  # fmt: skip


def test_pieces_of_one_commit_add_up(tmp_path):
    path = tmp_path / "out.json"
    for engine, figures in (
        ("quire", {"decode_b1": 2.0, "details": {"decode_b1": {"all": [2.0]}}}),
        ("sglang", {"decode_b1": 3.0}),
    ):
        results = versus_table.Results.open(path, "abc")
        results.describe("a card", "today", engine)
        results.add(engine, "0.5b", {**figures, "versions": {"torch": "2"}}, H200, FULL)
        results.save()
    held = json.loads(path.read_text())
    (found,) = held.pop("rows")
    assert held.pop("versions") == {"quire": {"torch": "2"}, "sglang": {"torch": "2"}}
    assert [run["command"] for run in held.pop("runs")] == ["quire", "sglang"]
    assert held == {"machine": "a card", "commit": "abc", "date": "today", "command": "sglang"}
    assert (found["ours"], found["sglang"], found["vllm"], found["ratio"]) == (2.0, 3.0, None, 1.5)
    assert 0.09 < found["floor_share"] < 0.13 and found["detail"] == {"ours": {"all": [2.0]}}
    (kept,) = versus_table.Results.open(path, "def").rows
    assert (kept["ours"], kept["sglang"], kept["ratio"]) == (None, 3.0, None), "another commit's figures of ours stayed"


@pytest.mark.parametrize("engine", ["quire", "vllm", "sglang"])
def test_every_workload_is_in_one_process(engine):
    found = [name for piece in versus_peers.pieces(engine, "7b", versus_peers.ALL) for name in piece.workloads]
    wanted = set(WORKLOADS) - {"sampling_each"} - (set() if engine == "quire" else {"sampling_cost"})
    assert sorted(found) == sorted(wanted)


def test_a_run_beside_fake_peers(tmp_path):
    """Three processes of ours, one or two of each fake; the JSON has a row for each workload, and the table is printed."""
    out = tmp_path / "versus.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "versus_peers.py"), "--tiny", "--shapes", "test", "--out", str(out),
        "--workloads", "decode_b8,prefix_turns,itl_p99_mixed,start_cold", "--vllm-path", str(FAKES), "--sglang-path", str(FAKES),
        "--commit", "abc", "--cache-dir", str(tmp_path / "caches"), "--limit", "250",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert result.returncode == 0, result.stdout + result.stderr
    held = json.loads(out.read_text())
    rows = {r["workload"]: r for r in held["rows"]}
    assert set(rows) == {"decode_b8", "prefix_turns", "itl_p99_mixed", "start_cold", "start_warm"}
    assert held["commit"] == "abc" and set(held["versions"]) == {"quire", "vllm", "sglang"}
    for name in ("decode_b8", "prefix_turns", "itl_p99_mixed", "start_cold"):
        assert all(rows[name][column] > 0 for column in ("ours", "vllm", "sglang")), rows[name]
    assert 0.9 < rows["decode_b8"]["vllm"] < 50, "the fake makes a token a millisecond, on a busy machine a few later"
    assert rows["start_warm"]["vllm"] is None and rows["start_warm"]["ratio"] > 0
    assert "decode_b8" in result.stdout and "of floor" in result.stdout


def test_a_server_under_load(tmp_path):
    """quire's server on random weights with a made-up tokenizer, and its own client."""
    out = tmp_path / "served.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "versus_serve.py"), "--engines", "quire", "--shapes", "test", "--rates", "50,inf",
        "--seconds", "0.1", "--unbounded", "6", "--max-model-len", "2048", "--device", "cpu", "--out", str(out), "--commit", "abc",
        "--cache-dir", str(tmp_path / "caches"),
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=800
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (found,) = json.loads(out.read_text())["rows"]
    assert found["workload"] == "serve_goodput" and found["ours"] is not None, result.stdout
    detail = found["detail"]["ours"]
    assert {rate: detail[rate]["completed"] + detail[rate]["failed"] for rate in ("50", "inf")} == {"50": 5, "inf": 6}
    assert detail["inf"]["completed"] == 6 and detail["inf"]["p99_ttft_ms"] > 0
    assert found["ours"] == detail["inf"]["goodput_server"] and detail["limits_ms"]["server"] == [2000, 100]
    assert "goodput_server: first token within 2000 ms, each further one within 100 ms" in result.stdout


@pytest.mark.parametrize("vocab_size", [512, 151_936])
def test_the_made_up_tokenizer_means_the_same_to_all(tmp_path, vocab_size):
    """transformers builds Qwen2's tokenizers anew from their parts, whatever their file says; servers must see the prompts that were meant."""
    write_tokenizer(str(tmp_path), vocab_size)
    (tmp_path / "config.json").write_text(json.dumps(shapes.COMMON))
    ours, theirs = Tokenizer.from_dir(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == vocab_size
    for length in (10, 220, 1000):
        text = TokenizedTexts(ours).make(random.Random(length), length)
        ids = ours.encode(text, add_special_tokens=False)
        assert theirs(text).input_ids == ids and abs(len(ids) - length) <= 3
    every = range(256, vocab_size - 1, 97)
    assert all(ours.decode([i]) for i in every), "each token is text, so that its coming is seen"
    assert ours.decode(list(every)) == theirs.decode(list(every))


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path):
    """A peer that is not there, and a workload that does not exist."""
    base = [
        sys.executable,
        str(ROOT / "benchmarks" / "versus_peers.py"),
        "--tiny",
        "--shapes",
        "test",
        "--out",
        str(tmp_path / "o.json"),
    ]
    result = subprocess.run([*base, "--workloads", "none_such"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "unknown workloads ['none_such']" in result.stderr
    assert TINY.max_model_len < FULL.max_model_len


def test_the_picture_has_a_bar_for_each_ratio(tmp_path):
    rows = [
        row("decode_b1", "ms", 2.0, 5.0, 4.0),
        row("chat", "req/s", 600.0, 40.0, 60.0),
        row("prefill", "tok/s", None, 1.0, 2.0),
    ]
    held = {"machine": "a <card>", "commit": "abc", "date": "2026-11-20 12:00 UTC", "versions": {"vllm": {"vllm": "0.26.0"}}, "rows": rows}  # fmt: skip
    source, target = tmp_path / "in.json", tmp_path / "sub" / "out.svg"
    source.write_text(json.dumps(held))
    command = [sys.executable, str(ROOT / "benchmarks" / "versus_picture.py"), str(source), str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    drawn = ElementTree.parse(target).getroot()
    words = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"2.00x", "10.00x", "decode, batch 1", "chat, 1,000 requests"} <= set(words)
    assert "prefill, 16 x 8,192" not in words, "nothing was measured there"
    assert any("a <card>; quire abc, vllm 0.26.0" in w for w in words)
    widths = [float(e.get("width")) for e in drawn.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "9"]
    assert len(widths) == 2 and max(widths) == 470.0, "a bar that is too long ends at the edge, its number beside it"
