"""rotary_write_kv: rotary position embedding of a step's queries and keys, the keys and values put into the paged cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn
from quire.ops.rotary import rotary
from quire.ops.write_kv import write_kv


def rotary_write_kv(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, kv: Tensor, slot_mapping: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotates q and k as quire.ops.rotary does, and stores the rotated k and v as quire.ops.write_kv does.

    q          [T, Hq, D], k and v [T, Hkv, D]   last dimension contiguous; may be views of one packed qkv row
    positions  [T] int64, cos_sin [max_position, R] fp32, R <= D
    kv         [2, N, P, Hkv, D], slot_mapping [T] int64, -1 = skip
    Returns    (q rotated, kv). kv is written in place; q and k may be too, so the caller gives them away.
    """
    q, k = rotary(q, k, positions, cos_sin)
    write_kv(k, v, kv, slot_mapping)
    return q, kv


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, q_heads, kv_heads, head_dim, rot_dim in ((1, 4, 2, 64, 64), (9, 7, 1, 80, 32), (21, 12, 4, 128, 128)):
        angles = torch.rand(200, rot_dim // 2, generator=generator) * 6.28
        qkv = randn(generator, rows, q_heads + 2 * kv_heads, head_dim, dtype=dtype, device=device)
        slots = torch.randperm(3 * 16, generator=generator)[:rows] + 16
        slots[rows // 2 + 1 :: 3] = -1
        yield {
            "q": qkv[:, :q_heads],
            "k": qkv[:, q_heads : q_heads + kv_heads],
            "v": qkv[:, q_heads + kv_heads :],
            "positions": torch.randint(0, 200, (rows,), generator=generator).to(device),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1).to(device),
            "kv": randn(generator, 2, 4, 16, kv_heads, head_dim, dtype=dtype, device=device),
            "slot_mapping": slots.to(device),
        }


SPEC = OpSpec("rotary_write_kv", rotary_write_kv, FLOAT_TOLERANCES, make_inputs, mutates=("kv",))
