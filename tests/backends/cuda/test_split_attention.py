"""The Hopper kernel of decoding rows' attention: what it takes, and itself on the CPU, its threads as fibers (on_cpu/ptx.cuh)."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_inputs import assert_attended, assert_written, decoding

from quire.backends.cuda import _nvrtc
from quire.backends.cuda import _split_attention as split

PROCESSORS, SHARED_BYTES = 132, 232_448  # of an H200; what one program may use


def tensors(head_size=64, block_size=16, dtype=torch.bfloat16, heads=4, kv_heads=2):
    qkv = torch.zeros(5, heads + 4, head_size, dtype=dtype)
    return qkv[:, :heads], torch.zeros(2, 3, block_size, kv_heads, head_size, dtype=dtype)


@pytest.mark.parametrize("head_size, block_size, heads", [(64, 16, 14), (128, 16, 4), (128, 32, 16), (64, 48, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_common_models(head_size, block_size, heads, dtype):
    q, kv = tensors(head_size, block_size, dtype, heads)
    assert split.fits(q, kv, window=0)
    assert split.can_turn(q[:, :2], q[:, :2], torch.zeros(9, head_size), head_size)


def test_leaves_the_rest_to_others():
    q, kv = tensors()
    assert not split.fits(q, kv, window=100)
    assert not split.fits(q, kv.half(), window=0)
    assert not split.fits(q, kv.transpose(2, 3), window=0)
    assert not split.fits(q[..., ::2], kv[..., ::2], window=0)
    assert not split.fits(q[:, ::2], kv, window=0)
    for other in ({"head_size": 80}, {"block_size": 8}, {"dtype": torch.float32}, {"heads": 18}):
        assert not split.fits(*tensors(**other), window=0)
    rows = torch.zeros(5 * 4 * 64 + 1, dtype=torch.bfloat16)
    assert not split.fits(rows[1:].view(5, 4, 64), kv, window=0)  # begins within a word
    assert not split.can_turn(q, q, torch.zeros(9, 32), 64)  # turns a part of each head


def test_arguments_are_laid_out_as_the_kernels_read_them():
    fields = split.Arguments
    assert (fields.to_values.offset, fields.stride_q.offset, fields.scale.offset) == (96, 104, 132)
    assert ctypes.sizeof(fields) == 136
    assert (split.PlanArguments.num_rows.offset, ctypes.sizeof(split.PlanArguments)) == (24, 40)


@pytest.mark.parametrize("head_size", split.HEAD_SIZES)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 64, 192, 383, 384, 1024])
def test_programs_fit_a_multiprocessor(head_size, kv_heads, rows):
    tiling = split.tiling(head_size, kv_heads, rows, PROCESSORS)
    assert tiling.chunk <= tiling.stages and kv_heads % tiling.heads == 0
    for group in range(1, split.MOST_GROUP + 1):
        kind = split.Kind(head_size, group, kv_heads, 16, True, tiling)
        assert kind.shared_bytes <= SHARED_BYTES and kind.programs_per_processor >= 1
        if group < split.MOST_GROUP:
            assert kind.programs_per_processor == tiling.per_processor


def test_splits_hold_any_length():
    assert [split.splits(rows) for rows in (1, 4, 5, 32, 33, 1024)] == [(128, 64)] * 2 + [(256, 32)] * 2 + [
        (512, 16)
    ] * 2


HERE = Path(__file__).parent
SOURCES = ("attention_plan.cu", "attention_plan.cuh", "split_attention.cu", "dependent.cuh")


class Emulated:
    """Stands in for a Kernel."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def launch_early(self, grid: tuple[int, int, int], cluster: tuple[int, int, int], arguments: tuple[Any]) -> None:
        self.call(grid[0], ctypes.byref(arguments[0]))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[split.Kind], ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("kernels")
    for source in (*(_nvrtc.KERNELS / name for name in SOURCES), *HERE.glob("on_cpu/*")):
        shutil.copy(source, folder)

    def build(kind: split.Kind) -> ctypes.CDLL:
        path = folder / f"{abs(hash(kind))}.so"
        if not path.exists():
            options = [f"-D{name}={value}" for name, value in kind.macros.items()]
            command = ["g++", "-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-w", *options]
            subprocess.run([*command, folder / "split_attention.cc", "-o", path], check=True)
        return ctypes.CDLL(str(path))

    return build


@pytest.fixture
def emulate(
    library: Callable[[split.Kind], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[split.Kind], None]]:
    """Says which tiles attend() is to use from here on, on the CPU; two multiprocessors, splits of 128 keys."""
    arrivals = split._arrivals
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(split, "_arrivals", lambda *a: (seen.append(arrivals(*a)), seen[-1])[1])
    monkeypatch.setattr(split, "_kernel", lambda _, kind: Emulated(library(kind).attend))
    monkeypatch.setattr(split, "_plan_kernel", lambda _: Emulated(lambda _, arguments: made[0].make_plan(arguments)))
    monkeypatch.setattr(split, "num_processors", lambda: 2)
    monkeypatch.setattr(split, "splits", lambda _: (128, 8))
    made: list[ctypes.CDLL] = []

    def use(kind: split.Kind) -> None:
        made[:] = [library(kind)]
        monkeypatch.setattr(split, "tiling", lambda *_: kind.tiling)

    yield use
    assert not any(counters.any() for counters in seen)


@pytest.mark.parametrize(
    "heads, kv_heads, head_size, block_size, dtype, tiling",
    [
        (14, 2, 64, 16, torch.bfloat16, split.Tiling(1, 4, 6, 4, 2)),
        (14, 2, 64, 16, torch.float16, split.Tiling(2, 1, 6, 4, 4)),
        (12, 2, 128, 32, torch.bfloat16, split.Tiling(1, 8, 3, 2, 1)),
        (16, 2, 128, 16, torch.bfloat16, split.Tiling(1, 4, 2, 2, 2)),
        (12, 4, 128, 16, torch.float16, split.Tiling(1, 2, 3, 2, 4)),
    ],
    ids=str,
)
def test_kernels_on_the_cpu(emulate, heads, kv_heads, head_size, block_size, dtype, tiling):
    lens = [1, 2, 16, 17, 0, 127, 128, 129, 300, 0, 520]
    kind = split.Kind(head_size, heads // kv_heads, kv_heads, block_size, dtype == torch.bfloat16, tiling)
    emulate(kind)
    inputs, plain = decoding((lens, heads, kv_heads, head_size, block_size), dtype, "cpu")
    q, kv, fwd, scale = inputs["q"], inputs["kv"], inputs["fwd"], inputs["scale"]
    before = kv.clone()
    for _ in range(2):  # as a second layer, which reads old keys early, too
        kv.copy_(before)
        out = torch.full(q.shape, float("nan"), dtype=dtype)
        split.attend(q, kv, fwd, scale, out, (inputs["k"], inputs["v"], inputs["cos_sin"]))
        assert_attended(out, plain)
        assert_written(before, inputs, plain)
    out = torch.full(q.shape, float("nan"), dtype=dtype)
    split.attend(plain["q"], plain["kv"], plain["fwd"], scale, out)
    assert_attended(out, plain)
