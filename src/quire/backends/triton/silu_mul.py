"""silu_mul on the GPU."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "silu_mul"
MAX_BLOCK = 1024  # 16 bytes of bfloat16 a thread at 4 warps


def run(x: Tensor) -> Tensor:
    """See quire.ops.silu_mul."""
    from quire.backends.triton._kernels_pointwise import silu_mul_kernel

    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    if num_rows:
        block = min(MAX_BLOCK, next_power_of_2(size))
        silu_mul_kernel[(num_rows, -(-size // block))](x, out, x.stride(0), size, block, num_warps=4, **dependent())
    return out
