"""layer_norm on the GPU: one pass over x."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, row_launch, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "layer_norm"


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See quire.ops.layer_norm."""
    from quire.backends.triton._kernels_norm import layer_norm_kernel

    num_rows, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows:
        block, rows, num_warps = row_launch(size)
        layer_norm_kernel[(-(-num_rows // rows),)](
            x, weight, bias, out, num_rows, x.stride(0), eps, size, block, rows, num_warps=num_warps, **dependent()
        )
    return out
