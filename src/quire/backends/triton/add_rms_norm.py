"""add_rms_norm on the GPU: the sum is written into `residual` and normed in the same pass."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, row_launch, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "add_rms_norm"


def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See quire.ops.add_rms_norm."""
    from quire.backends.triton._kernels_norm import add_rms_norm_kernel

    num_rows, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows:
        block, rows, num_warps = row_launch(size)
        add_rms_norm_kernel[(-(-num_rows // rows),)](
            x, residual, weight, out, num_rows, eps, size, block, rows, num_warps=num_warps, **dependent()
        )
    return out, residual
