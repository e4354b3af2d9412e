"""linear_greedy on the CPU: the two kernels, one after the other."""

from torch import Tensor

from quire.backends.cpu import _native, greedy, linear

IMPLEMENTS = "linear_greedy"
why_not = _native.why_not


def run(x: Tensor, weight: Tensor) -> Tensor:
    """See quire.ops.linear_greedy."""
    return greedy.run(linear.run(x, weight))
