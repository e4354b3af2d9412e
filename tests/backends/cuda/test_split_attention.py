"""What the Hopper kernel of decoding rows' attention takes, and that its launches are as the kernel reads them; it runs in tests/gpu."""

import ctypes

import pytest
import torch

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
@pytest.mark.parametrize("pairs", [1, 132, 133, 264, 265, 4096])
def test_programs_fit_a_multiprocessor(head_size, pairs):
    tiling = split.tiling(head_size, pairs, PROCESSORS)
    assert tiling.chunk <= tiling.stages
    for group in range(1, split.MOST_GROUP + 1):
        kind = split.Kind(head_size, group, 2, 16, True, tiling)
        assert kind.shared_bytes <= SHARED_BYTES and kind.programs_per_processor >= 1
        if group < split.MOST_GROUP:
            assert kind.programs_per_processor == tiling.per_processor


def test_splits_hold_any_length():
    assert [split.splits(rows) for rows in (1, 8, 9, 32, 33, 1024)] == [(128, 64)] * 2 + [(256, 32)] * 2 + [
        (512, 16)
    ] * 2
