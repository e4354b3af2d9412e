"""rms_norm on the CPU: csrc/cpu/rowwise.h."""

from torch import Tensor

from quire.backends.cpu import _native
from quire.backends.cpu._norm import norm, supported
from quire.ops.rms_norm import rms_norm as reference

IMPLEMENTS = "rms_norm"
why_not = _native.why_not


def run(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See quire.ops.rms_norm. Takes fp32 and bf16 [T, H] or [T, heads, H]; other inputs go to the reference."""
    if not supported(x, weight):
        return reference(x, weight, eps)
    return norm(IMPLEMENTS, x, None, weight, None, eps)
