"""rms_norm on the GPU: one pass over x."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, row_launch, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "rms_norm"


def run(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See quire.ops.rms_norm."""
    from quire.backends.triton._kernels_norm import rms_norm_kernel

    size = x.shape[-1]
    if x.dim() not in (2, 3):
        return run(x.reshape(-1, size), weight, eps).view(x.shape)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads, stride_head = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    num_rows = x.shape[0] * heads
    if num_rows:
        block, rows, num_warps = row_launch(size)
        rms_norm_kernel[(-(-num_rows // rows),)](
            x,
            weight,
            out,
            num_rows,
            x.stride(0),
            stride_head,
            eps,
            heads,
            size,
            block,
            rows,
            num_warps=num_warps,
            **dependent(),
        )
    return out
