"""paged_attention on the GPU: split-key decoding for rows with one query, flash attention over packed tiles for the others.

A step of nothing but decoding rows launches the first alone, with a grid that depends on shapes and not on lengths, so that it can
be captured in a graph; lengths are read on the device. Other steps launch both, each of which passes over the other's rows; a lone
prompt launches the second alone.
"""

from functools import cache

import torch
from torch import Tensor

from quire.backends.triton._split_keys import Tiles, decode
from quire.backends.triton._support import next_power_of_2, shared_memory_bytes, why_not
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import LOG2_E

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "paged_attention"


@cache
def prefill_tiles(head_size: int, group: int, itemsize: int, shared_bytes: int) -> Tiles:
    """Tiles for packed queries; smaller ones in fp32, whose products take the slow exact path, and where shared memory is small."""
    block_d = max(16, next_power_of_2(head_size))
    if itemsize == 4:
        return Tiles(max(32, next_power_of_2(group)), 32, block_d, 8, 1, "ieee")
    block_n = 64 if block_d <= 128 else 32
    needed = (128 + 2 * 3 * block_n) * block_d * itemsize
    if needed <= shared_bytes:
        return Tiles(max(128, next_power_of_2(group)), block_n, block_d, 4 if block_d <= 128 else 8, 3, "tf32")
    return Tiles(max(64, next_power_of_2(group)), 32, block_d, 4, 2, "tf32")


def run(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0) -> Tensor:
    """See quire.ops.paged_attention."""
    num_tokens, num_sequences = q.shape[0], fwd.num_sequences
    # Every row of a decoding step is written; elsewhere a row that belongs to no sequence must still be zero.
    out = (torch.empty if fwd.only_decodes else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
    if num_tokens and num_sequences:
        if not fwd.only_decodes:
            _prefill(q, kv, fwd, scale, window, out)
        if fwd.max_query_len == 1 or num_sequences > 1:
            decode(q, kv, fwd, scale, window, out)
    return out


def _prefill(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int, out: Tensor) -> None:
    from quire.backends.triton._kernels_attention import prefill_kernel

    num_tokens, num_heads, head_size = q.shape
    kv_heads = kv.shape[3]
    group = num_heads // kv_heads
    tiles = prefill_tiles(head_size, group, q.element_size(), shared_memory_bytes())
    num_tiles = num_tokens // (tiles.block_m // group) + fwd.num_sequences
    prefill_kernel[(num_tiles, kv_heads)](
        q, kv, fwd.block_tables, fwd.query_start_loc, fwd.seq_lens, out, fwd.num_sequences, scale * LOG2_E,
        q.stride(0), q.stride(1), kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3), fwd.block_tables.stride(0),
        num_heads, group, head_size, kv.shape[2], window, tiles.block_m, tiles.block_n, tiles.block_d, tiles.precision,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
