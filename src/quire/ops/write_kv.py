"""write_kv: this step's keys and values into the paged cache. Source: arXiv:2309.06180 section 4."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def write_kv(k: Tensor, v: Tensor, kv: Tensor, slot_mapping: Tensor) -> None:
    """Stores each token's key and value at its slot.

    k, v          [T, Hkv, D]   last dimension contiguous
    kv            [2, N, P, Hkv, D]   written in place: keys then values
    slot_mapping  [T] int64, slot = block_id * P + offset; -1 = skip (padding). Slots of one call are distinct
    """
    flat = kv.view(2, -1, *kv.shape[3:])
    if slot_mapping.device.type == "cpu":
        keep = slot_mapping >= 0
        k, v, slot_mapping = k[keep], v[keep], slot_mapping[keep]
        flat[0].index_copy_(0, slot_mapping, k.to(kv.dtype))
        flat[1].index_copy_(0, slot_mapping, v.to(kv.dtype))
        return
    # No host sync on a device: padding rows go to slot 0 of block 0, which the pool never hands out.
    slots = slot_mapping.clamp_min(0)
    flat[0][slots] = k.to(kv.dtype)
    flat[1][slots] = v.to(kv.dtype)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, kv_heads, head_dim, blocks, block_size in ((1, 2, 64, 4, 16), (13, 1, 128, 5, 8)):
        slots = torch.randperm((blocks - 1) * block_size, generator=generator)[:rows] + block_size
        slots[rows // 2 + 1 :: 3] = -1
        yield {
            "k": randn(generator, rows, kv_heads, head_dim, dtype=dtype, device=device),
            "v": randn(generator, rows, kv_heads, head_dim, dtype=dtype, device=device),
            "kv": randn(generator, 2, blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device),
            "slot_mapping": slots.to(device),
        }


SPEC = OpSpec("write_kv", write_kv, FLOAT_TOLERANCES, make_inputs, mutates=("kv",))
