"""linear on the CPU: csrc/cpu/linear.h. A row's result does not depend on the number of rows, their order or the threads."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.linear import linear as reference

IMPLEMENTS = "linear"
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("11q")  # LinearArgs
_call = _native.operator("quire_linear")


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear. Takes fp32 and bf16, everything of one dtype; other inputs go to the reference."""
    dtype = x.dtype
    code = _codes.get(dtype)
    stride, columns = x.stride()
    if code is None or weight.dtype is not dtype or columns != 1 or not weight.is_contiguous():
        return reference(x, weight, bias)
    if bias is not None and (bias.dtype is not dtype or not bias.is_contiguous()):
        return reference(x, weight, bias)
    n, k = weight.shape
    m = x.shape[0]
    if x.shape[1] != k or (bias is not None and bias.shape[0] != n):
        return reference(x, weight, bias)  # which says what does not fit
    out = torch.empty(m, n, dtype=dtype)
    biases = 0 if bias is None else bias.data_ptr()
    status = _call(_pack(x.data_ptr(), weight.data_ptr(), biases, out.data_ptr(), m, n, k, stride, k, n, code))
    if status:
        raise _native.error(status, IMPLEMENTS)
    return out
