"""chat, complete, env and bench with the bundled model: what a newcomer types first."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quire.ops
from quire.cli.main import main
from quire.version import __version__

SMALL = ["--max-model-len", "256", "--num-gpu-blocks-override", "40"]
OPS = Path(quire.ops.__file__).parent
NOT_OPERATORS = ("__init__", "ahead", "contract", "forward_batch", "registry")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_chat_answers_one_question(capsys):
    out = run(capsys, "chat", "-q", "What is the capital of France?", "--temperature", "0", *SMALL)
    assert "Paris" in out and out.count("\n") == 1


def test_chat_remembers_the_turn_before(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("浙江的省会在哪里？\n\n这有什么好吃的？\nexit\nnever read\n"))
    out = run(capsys, "chat", "--temperature", "0", *SMALL)
    first, second = re.findall(r"> ([^>\n]+)", out)[:2]
    assert "杭州" in first and ("西湖醋鱼" in second or "东坡肉" in second)
    assert "never" not in out


def test_a_message_that_is_refused_is_taken_back_and_the_chat_goes_on(capsys, monkeypatch):
    too_long = "word " * 400
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{too_long}\nWhat is the capital of Japan?\n"))
    assert main(["chat", "--temperature", "0", "--max-tokens", "30", *SMALL]) == 0
    captured = capsys.readouterr()
    assert "Tokyo" in captured.out
    assert "256" in captured.err.splitlines()[-1] and captured.err.splitlines()[-1].startswith("quire chat: ")


def test_chat_is_told_a_system_prompt(capsys):
    out = run(
        capsys,
        "chat",
        "-q",
        "12 + 30 = ?",
        "--system-prompt",
        "You are a helpful assistant.",
        "--temperature",
        "0",
        *SMALL,
    )
    assert "42" in out


def test_complete_continues_a_text_and_each_line_of_the_input(capsys, monkeypatch):
    out = run(capsys, "complete", "-q", "The capital of France is", "--max-tokens", "2", "--temperature", "0", *SMALL)
    assert "Paris" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("法国的首都是\n\nThe capital of Italy is\n"))
    lines = run(capsys, "complete", "--max-tokens", "2", "--temperature", "0", *SMALL).splitlines()
    assert len(lines) == 2 and "巴黎" in lines[0] and "Rome" in lines[1]


def test_env_says_what_a_bug_report_needs(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    out = run(capsys, "env", "--device", "cpu")
    assert out.startswith(f"quire {__version__}, Python 3.")
    assert re.search(r"^memory: [\d.]+ GiB in all, [\d.]+ GiB free$", out, re.M)
    assert re.search(r"torch 2\.\d+", out) and "(not installed)" not in out.split("transformers")[1].splitlines()[0]
    assert "very-secret" not in out and "VLLM_API_KEY=***" in out
    assert "HF_ENDPOINT=https://hf-mirror.com" in out and "CUDA_VISIBLE_DEVICES=7" in out
    backends = dict(re.findall(r"^  (\w+) +(cpu|torch)\b", out, re.M))
    assert sorted(backends) == sorted(path.stem for path in OPS.glob("*.py") if path.stem not in NOT_OPERATORS)
    assert backends["linear"] == backends["paged_attention"] == "cpu"


def test_bench_latency_writes_what_it_measured(capsys, tmp_path: Path):
    path = tmp_path / "latency.json"
    sizes = [
        "--input-len",
        "8",
        "--output-len",
        "4",
        "--batch-size",
        "2",
        "--num-iters",
        "2",
        "--num-iters-warmup",
        "1",
    ]
    out = run(capsys, "bench", "latency", *sizes, "--output-json", str(path), *SMALL)
    found = json.loads(path.read_text())
    assert (found["benchmark"], found["batch_size"], found["num_iters"]) == ("latency", 2, 2)
    assert 0 < found["min_latency_s"] <= found["avg_latency_s"] <= found["max_latency_s"]
    assert found["output_tokens_per_second"] == pytest.approx(2 * 4 / found["avg_latency_s"])
    assert f"Avg latency: {found['avg_latency_s']:.4f} seconds" in out


def test_bench_throughput_counts_all_tokens(capsys, tmp_path: Path):
    path = tmp_path / "throughput.json"
    sizes = ["--num-prompts", "6", "--input-len", "12", "--output-len", "6", "--output-json", str(path)]
    out = run(capsys, "bench", "throughput", *sizes, *SMALL)
    found = json.loads(path.read_text())
    assert found["requests_per_second"] == pytest.approx(6 / found["elapsed_s"])
    assert found["total_tokens_per_second"] > found["output_tokens_per_second"] > 0
    assert f"{found['requests_per_second']:.2f} requests/s" in out


def test_answers_go_to_stdout_and_all_else_to_stderr():
    words = [
        sys.executable,
        "-m",
        "quire",
        "chat",
        "-q",
        "What is the capital of France?",
        "--temperature",
        "0",
        *SMALL,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr.count("bundled demo model, for trying the software, not for answers") == 1
