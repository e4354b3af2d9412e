"""Every Triton operator under Triton's interpreter against its reference, so that the kernels' logic is tested without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire.ops.registry import implementations

pytest.importorskip("triton", reason="triton is made for Linux alone")
PROGRAM = Path(__file__).with_name("interpret_ops.py")
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def results() -> list[dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", sorted(implementations("triton")))
def test_close_to_reference(results, op, dtype):
    mine = [r for r in results if r["op"] == op and r["dtype"] == dtype]
    assert len(mine) >= 2
    for result in mine:
        assert max(result["errors"]) <= result["bound"], result
