"""linear_silu_mul on the GPU: one kernel for one row, the two operators for more."""

from torch import Tensor

from quire.backends.triton import linear, silu_mul
from quire.backends.triton._support import why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear_silu_mul"


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear_silu_mul."""
    if x.shape[0] == 1 and x.dtype in linear.HALVES:
        return linear.gemv(x, weight, bias, gated=True)
    return silu_mul.run(linear.run(x, weight, bias))
