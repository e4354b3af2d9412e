"""linear_silu_mul on the CPU: the two operators one after the other."""

from torch import Tensor

from quire.backends.cpu import _native, linear, silu_mul

IMPLEMENTS = "linear_silu_mul"
why_not = _native.why_not


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear_silu_mul."""
    return silu_mul.run(linear.run(x, weight, bias))
