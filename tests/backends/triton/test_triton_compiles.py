"""Every Triton kernel compiles for an H200, fits its shared memory, and multiplies on the matrix units, without a GPU at hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is made for Linux alone")
PROGRAM = Path(__file__).with_name("compile_kernels.py")
SHARED_BYTES = 232_448
KERNELS = {
    "rms_norm_kernel", "add_rms_norm_kernel", "layer_norm_kernel", "silu_mul_kernel", "rotary_write_kv_kernel", "write_kv_kernel",
    "decode_kernel", "prefill_kernel", "gemv_kernel",
    "greedy_parts_kernel", "greedy_merge_kernel", "pick_kernel", "place_tokens_kernel", "take_tokens_kernel",
    "draw_parts_kernel", "draw_merge_kernel",
    "count_tokens_kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    cache = tmp_path_factory.mktemp("triton-cache")
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=800, env=environment)
    shutil.rmtree(cache)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_kernels_compile(compiled):
    assert {line["kernel"] for line in compiled} == KERNELS
    assert all(line["cubin_bytes"] > 0 and line["shared_bytes"] <= SHARED_BYTES for line in compiled)


def test_kernels_of_decoding_steps_may_start_early_and_wait(compiled):
    assert {line["kernel"] for line in compiled if not line["starts_early"]} == {"prefill_kernel"}


def test_products_use_matrix_instructions(compiled):
    for line in compiled:
        if line["kernel"] in ("decode_kernel", "prefill_kernel"):
            assert line["matrix_instructions"] > 0, line
