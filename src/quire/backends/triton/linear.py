"""linear on the GPU: an own kernel for one row, the matrix library for all else.

A product of one row is bound by reading the weight; a plain kernel reads it 1.1 to 2 times as fast as cuBLAS does
(H200, bfloat16, sizes of Qwen2.5).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear"
HALVES = (torch.bfloat16, torch.float16)


@cache
def gemv_tiles(out_size: int, in_size: int) -> tuple[int, int, int]:
    """(block_n, block_k, num_warps) for one row, as measured on an H200 over the sizes of Qwen2.5: within 12 % of the best everywhere.

    Few outputs need long tiles, so that each program has much of its weight on the way at once.
    """
    block_n = 8 if out_size >= 65_536 else 2 if in_size >= 4096 and out_size < 8192 else 4
    return block_n, min(512 if out_size >= 8192 else 2048, max(128, next_power_of_2(in_size))), 4


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear."""
    return gemv(x, weight, bias) if x.shape[0] == 1 and x.dtype in HALVES else F.linear(x, weight, bias)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool = False) -> Tensor:
    """One row: x [1, K], weight [N, K] -> [1, N]; gated: silu_mul of that, [1, N / 2]."""
    from quire.backends.triton._kernels_linear import gemv_kernel

    out_size, in_size = weight.shape[0] // (1 + gated), weight.shape[1]
    out = torch.empty(1, out_size, dtype=x.dtype, device=x.device)
    block_n, block_k, num_warps = gemv_tiles(weight.shape[0], in_size)
    block_n = max(1, block_n // (1 + gated))
    gemv_kernel[(-(-out_size // block_n),)](
        x, weight, weight if bias is None else bias, out, out_size, in_size,
        bias is not None, gated, in_size % block_k == 0, block_n, block_k, num_warps=num_warps, **dependent(),
    )  # fmt: skip
    return out
