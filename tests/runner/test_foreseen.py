"""DrySteps against steps of many sizes: none of them calls for a kernel that would be compiled in its midst, for a second or so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shape", ["0.5b", "7b"])
def test_every_kernel_of_a_greedy_run_is_foreseen(shape: str) -> None:
    script = Path(__file__).with_name("foreseen_on_sm90.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, str(script), shape], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["known"] > 30
    assert not found["unknown"], "kernels, and the (tokens, sequences) of steps that need them"
