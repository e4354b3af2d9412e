"""What the Hopper kernel of prompts' attention takes, and that its launches are as the kernel reads them; it runs in tests/gpu."""

import ctypes

import pytest
import torch

from quire.backends.cuda import _prefill_attention as prefill

SHARED_BYTES = 232_448  # what one program may use on an H200


def tensors(head_size=64, block_size=16, dtype=torch.bfloat16):
    qkv = torch.zeros(5, 8, head_size, dtype=dtype)
    return qkv[:, :4], torch.zeros(2, 3, block_size, 2, head_size, dtype=dtype)


@pytest.mark.parametrize("head_size, block_size", [(64, 16), (128, 16), (128, 8), (64, 256), (64, 48)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_common_models(head_size, block_size, dtype):
    assert prefill.fits(*tensors(head_size, block_size, dtype), window=0)


def test_leaves_the_rest_to_others():
    q, kv = tensors()
    assert not prefill.fits(q, kv, window=100)
    assert not prefill.fits(q, kv.half(), window=0)
    assert not prefill.fits(q, kv.transpose(2, 3), window=0)
    assert not prefill.fits(q[..., ::2], kv[..., ::2], window=0)
    for other in ({"head_size": 80}, {"head_size": 256}, {"block_size": 4}, {"dtype": torch.float32}):
        assert not prefill.fits(*tensors(**other), window=0)
    rows = torch.zeros(5 * 4 * 64 + 1, dtype=torch.bfloat16)
    assert not prefill.fits(rows[1:].view(5, 4, 64), kv, window=0)  # begins at no multiple of 16 bytes


def test_arguments_are_laid_out_as_the_kernel_reads_them():
    fields = prefill.Arguments
    assert (fields.kv_map.offset, fields.out.offset, fields.num_sequences.offset, fields.scale.offset) == (
        128,
        256,
        296,
        332,
    )
    assert ctypes.sizeof(fields) == 384  # the kernel's is aligned to 64 bytes


@pytest.mark.parametrize("head_size", prefill.HEAD_SIZES)
def test_larger_tiles_where_there_is_enough_to_do(head_size):
    many = prefill.groups_of(head_size, 14 * 16_384, 8192, 132)
    few = prefill.groups_of(head_size, 14 * 1024, 1024, 132)
    short = prefill.groups_of(head_size, 14 * 16_384, 256, 132)
    assert (many, few, short) == (3 if head_size == 64 else 2, 2, 2)
    assert all(prefill.shared_bytes(head_size, groups) <= SHARED_BYTES for groups in (few, many))
