"""paged_attention on the CPU: csrc/cpu/attention.h.

A token's result is the same bits in any chunk, batch, block size and number of threads: its keys are reduced in tiles and splits at
fixed absolute positions.
"""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import paged_attention as reference

IMPLEMENTS = "paged_attention"
MAX_HEAD_DIM = 256
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("18qd")  # AttentionArgs
_call = _native.operator("quire_paged_attention")


def run(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0) -> Tensor:
    """See quire.ops.paged_attention. Takes fp32 and bf16, D up to 256, a contiguous cache; other inputs go to the reference."""
    starts, lens, tables = fwd.query_start_loc, fwd.seq_lens, fwd.block_tables
    if not (_supported(q, kv) and _is_int32(starts) and _is_int32(lens) and _is_int32(tables)):
        return reference(q, kv, fwd, scale, window)
    tokens, q_heads, head_dim = q.shape
    _, num_blocks, block_size, kv_heads, _ = kv.shape
    sequences, table_width = tables.shape
    q_stride, q_head_stride, _ = q.stride()
    out = torch.empty(tokens, q_heads, head_dim, dtype=q.dtype)
    status = _call(
        _pack(
            q.data_ptr(),
            kv.data_ptr(),
            out.data_ptr(),
            starts.data_ptr(),
            lens.data_ptr(),
            tables.data_ptr(),
            tokens,
            sequences,
            q_heads,
            kv_heads,
            head_dim,
            num_blocks,
            block_size,
            table_width,
            q_stride,
            q_head_stride,
            window,
            _codes[q.dtype],
            scale,
        )
    )
    if status:
        raise _native.error(status, IMPLEMENTS)
    return out


def _supported(q: Tensor, kv: Tensor) -> bool:
    dtype, head_dim = q.dtype, q.shape[2]
    return (
        dtype in _codes
        and kv.dtype is dtype
        and head_dim <= MAX_HEAD_DIM
        and q.stride(2) == 1
        and kv.is_contiguous()
        and kv.shape[4] == head_dim
        and q.shape[1] % kv.shape[3] == 0
    )


def _is_int32(t: Tensor) -> bool:
    return t.dtype is torch.int32 and t.is_contiguous()
