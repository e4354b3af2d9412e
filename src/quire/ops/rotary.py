"""rotary: rotary position embedding on queries and keys. Source: arXiv:2104.09864; the half-split layout of Hugging Face models."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates pairs (x[i], x[i + R/2]) by position-dependent angles; dimensions past R stay.

    q          [T, Hq, D], k [T, Hkv, D]   last dimension contiguous; may be views of one packed qkv row
    positions  [T] int64
    cos_sin    [max_position, R] fp32: cos in [:, :R/2], sin in [:, R/2:]; R <= D
    Returns    (q, k) rotated, in their dtype. An implementation may write in place and return its arguments, so the caller gives
               them away. Computed in fp32.
    """
    table = cos_sin[positions].unsqueeze(1)
    cos, sin = table.chunk(2, dim=-1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, q_heads, kv_heads, head_dim, rot_dim in ((1, 4, 2, 64, 64), (9, 7, 1, 64, 32), (21, 4, 4, 128, 128)):
        angles = torch.rand(200, rot_dim // 2, generator=generator) * 6.28
        qkv = randn(generator, rows, q_heads + kv_heads, head_dim, dtype=dtype, device=device)
        yield {
            "q": qkv[:, :q_heads],
            "k": qkv[:, q_heads:],
            "positions": torch.randint(0, 200, (rows,), generator=generator).to(device),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1).to(device),
        }


SPEC = OpSpec("rotary", rotary, FLOAT_TOLERANCES, make_inputs, mutates=("q", "k"))
