"""add_rms_norm on the CPU: csrc/cpu/rowwise.h."""

from torch import Tensor

from quire.backends.cpu import _native
from quire.backends.cpu._norm import norm, supported
from quire.ops.add_rms_norm import add_rms_norm as reference

IMPLEMENTS = "add_rms_norm"
why_not = _native.why_not


def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See quire.ops.add_rms_norm. Writes the sum into `residual`. Takes fp32 and bf16; other inputs go to the reference."""
    fits = residual.dtype is x.dtype and residual.is_contiguous() and residual.shape == x.shape
    if not fits or not supported(x, weight):
        return reference(x, residual, weight, eps)
    return norm(IMPLEMENTS, x, residual, weight, None, eps), residual
