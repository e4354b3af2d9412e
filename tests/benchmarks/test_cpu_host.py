"""The measurement of the host's work: it runs each workload with a clock in place of a device, and its figures fit together."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_workload_is_measured() -> None:
    command = [sys.executable, "benchmarks/cpu_host.py", "--tiny", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    calls = [entry for entry in figures if "wall" in entry]
    assert {name for entry in figures for name in entry} > {
        "prefill",
        "ttft_1k",
        "chat",
        "sampling_cost",
        "prefix_groups",
        "prefix_turns",
    }
    for call in calls:
        assert call["wall"] >= call["before"] + call["idle"] + call["after"] and call["works"]
        assert 0 < call["host"] <= call["wall"]
