"""linear on the GPU: own kernels for the few rows of small decoding steps, the matrix library for all else.

A product of few rows is bound by reading the weight; at one row a plain kernel reads it 1.1 to 2 times as fast as cuBLAS does
(H200, bfloat16, sizes of Qwen2.5).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear"
GEMV_ROWS = 1  # most rows that the own kernels take
HALVES = (torch.bfloat16, torch.float16)


@cache
def gemv_tiles(out_size: int, in_size: int) -> tuple[int, int, int]:
    """(block_n, block_k, num_warps) for one row, as measured on an H200 over the sizes of Qwen2.5: within 12 % of the best everywhere.

    Few outputs need long tiles, so that each program has much of its weight on the way at once.
    """
    block_n = 8 if out_size >= 65_536 else 2 if in_size >= 4096 and out_size < 8192 else 4
    return block_n, min(512 if out_size >= 8192 else 2048, max(128, next_power_of_2(in_size))), 4


@cache
def few_rows_tiles(num_rows: int, out_size: int, in_size: int) -> tuple[int, int, int, int, int]:
    """(block_m, block_n, block_k, num_warps, num_stages) for 2 to 16 rows or so."""
    block_n = 64 if out_size >= 16_384 else 32 if out_size >= 8192 else 16
    return max(16, next_power_of_2(num_rows)), block_n, 256 if in_size >= 256 else 128, 4, 4


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear."""
    if not 0 < x.shape[0] <= GEMV_ROWS or x.dtype not in HALVES:
        return F.linear(x, weight, bias)
    return gemv(x, weight, bias) if x.shape[0] == 1 else few_rows(x, weight, bias)


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


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A few rows: x [M, K], weight [N, K] -> [M, N]."""
    from quire.backends.triton._kernels_linear import few_rows_kernel

    (num_rows, in_size), out_size = x.shape, weight.shape[0]
    out = torch.empty(num_rows, out_size, dtype=x.dtype, device=x.device)
    block_m, block_n, block_k, num_warps, num_stages = few_rows_tiles(num_rows, out_size, in_size)
    few_rows_kernel[(-(-out_size // block_n),)](
        x, weight, weight if bias is None else bias, out, num_rows, x.stride(0), out_size, in_size,
        bias is not None, in_size % block_k == 0, block_m, block_n, block_k, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out
