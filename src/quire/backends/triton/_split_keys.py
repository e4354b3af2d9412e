"""Launches of attention for rows with one query: how keys are split among programs, and what they need besides the inputs."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import LOG2_E

FEW_SEQUENCES = 16
TARGET_PROGRAMS = 2048  # enough to fill a large GPU several times over, so that rows of unlike lengths even out
MIN_PROGRAMS = 4  # programs a row and head have at any batch size


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one kernel; chosen from the head size, the element size and the device, never from the batch."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    precision: str


@cache
def decode_tiles(head_size: int, group: int, itemsize: int) -> Tiles:
    """Tiles for rows of one query: `group` heads padded to what a matrix instruction takes."""
    block_d = max(16, next_power_of_2(head_size))
    block_m = max(16, next_power_of_2(group))
    if itemsize == 4:
        return Tiles(block_m, 32 if block_d <= 128 else 16, block_d, 8, 3, "ieee")
    return Tiles(block_m, 64 if block_d <= 128 else 32, block_d, 4, 2, "tf32")


@cache
def splits(num_sequences: int) -> tuple[int, int]:
    """(keys a split, most splits of a row): short ones where there are too few sequences to keep the device busy otherwise."""
    return (64, 64) if num_sequences <= FEW_SEQUENCES else (256, 32)


@cache
def _arrivals(device: torch.device, size: int) -> Tensor:
    """Counters that are zero whenever no kernel runs; one tensor a power of two serves every layer and step."""
    return torch.zeros(size, dtype=torch.int32, device=device)


def decode(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int, out: Tensor) -> None:
    """Attention of the rows of `fwd` that have one query, into `out`."""
    from quire.backends.triton._kernels_split import decode_kernel

    num_sequences, (_, num_heads, head_size), kv_heads = fwd.num_sequences, q.shape, kv.shape[3]
    group = num_heads // kv_heads
    tiles = decode_tiles(head_size, group, q.element_size())
    split_keys, most_splits = splits(num_sequences)
    max_keys = min(fwd.max_seq_len, window + split_keys - 1) if window else fwd.max_seq_len
    max_splits = min(most_splits, -(-max_keys // split_keys))
    programs = min(max_splits, max(MIN_PROGRAMS, -(-TARGET_PROGRAMS // (num_sequences * kv_heads))))
    shape = (num_sequences, num_heads, max_splits) if max_splits > 1 else (1, 1, 1)
    partial = torch.empty((*shape, head_size), dtype=torch.float32, device=q.device)
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    counters = _arrivals(q.device, next_power_of_2(num_sequences * kv_heads))
    decode_kernel[(kv_heads, programs, num_sequences)](
        q, kv, fwd.block_tables, fwd.query_start_loc, fwd.seq_lens, out, partial, lse, counters, scale * LOG2_E,
        q.stride(0), q.stride(1), kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3), fwd.block_tables.stride(0),
        max_splits, num_heads, group, head_size, kv.shape[2], window, tiles.block_m, tiles.block_n, tiles.block_d,
        split_keys, most_splits, tiles.precision, num_warps=tiles.num_warps, num_stages=tiles.num_stages, **dependent(),
    )  # fmt: skip
