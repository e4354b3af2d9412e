"""What the Triton backend says where it cannot run, and that its launch sizes depend on the shapes they should."""

import os
import subprocess
import sys

import pytest
import torch

from quire.backends.triton import _split_keys, _support, paged_attention

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
from quire.ops.registry import implementations, resolve
reasons = {name: module.why_not() for name, module in implementations("triton").items()}
assert len(reasons) >= 8 and all(r == ["the triton package is not installed"] for r in reasons.values()), reasons
_, choices = resolve(("triton", "torch"))
assert {c.backend for c in choices} == {"torch"}
assert all(c.refused["triton"] for c in choices)
"""


def test_a_machine_without_triton_falls_back_and_says_why():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_old_and_absent_devices_are_named(monkeypatch):
    monkeypatch.setattr(_support, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _support.why_not.__wrapped__() == ["no CUDA device is visible"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert _support.why_not.__wrapped__() == ["compute capability is 7.5; 8.0 is needed"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert _support.why_not.__wrapped__() == []


@pytest.mark.parametrize("size", [1, 64, 100, 896, 3584, 8192, 12_289])
def test_a_program_covers_its_rows(size):
    block, rows, num_warps = _support.row_launch(size)
    assert block >= size and block & (block - 1) == 0
    assert rows >= 1 and num_warps in (1, 2, 4, 8, 16)


@pytest.mark.parametrize("shared_bytes", [99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_size, group", [(64, 7), (80, 1), (128, 7), (128, 16), (256, 4)])
def test_attention_tiles_fit_the_device(head_size, group, itemsize, shared_bytes):
    tiles = paged_attention.prefill_tiles(head_size, group, itemsize, shared_bytes)
    assert tiles.block_m >= group and tiles.block_d >= head_size
    # Triton keeps one tile of queries and, of keys and values, one less than the stages it loads ahead.
    kept = tiles.block_m + 2 * max(1, tiles.num_stages - 1) * tiles.block_n
    assert kept * tiles.block_d * itemsize <= shared_bytes
    assert _split_keys.decode_tiles(head_size, group, itemsize).block_m >= max(16, group)
