"""layer_norm on the CPU: csrc/cpu/rowwise.h."""

from torch import Tensor

from quire.backends.cpu import _native
from quire.backends.cpu._norm import norm, supported
from quire.ops.layer_norm import layer_norm as reference

IMPLEMENTS = "layer_norm"
why_not = _native.why_not


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See quire.ops.layer_norm. Takes fp32 and bf16 [T, H]; other inputs go to the reference."""
    if not supported(x, weight, bias):
        return reference(x, weight, bias, eps)
    return norm(IMPLEMENTS, x, None, weight, bias, eps)
