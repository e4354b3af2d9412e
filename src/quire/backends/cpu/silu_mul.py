"""silu_mul on the CPU: csrc/cpu/rowwise.h."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.silu_mul import silu_mul as reference

IMPLEMENTS = "silu_mul"
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("6q")  # SiluMulArgs
_call = _native.operator("quire_silu_mul")


def run(x: Tensor) -> Tensor:
    """See quire.ops.silu_mul. Takes fp32 and bf16 [T, 2·I]; other inputs go to the reference."""
    dtype = x.dtype
    code = _codes.get(dtype)
    if code is None or x.dim() != 2 or x.stride(1) != 1 or x.shape[1] % 2:
        return reference(x)
    rows, width = x.shape
    out = torch.empty(rows, width // 2, dtype=dtype)
    status = _call(_pack(x.data_ptr(), out.data_ptr(), rows, width // 2, x.stride(0), code))
    if status:
        raise _native.error(status, IMPLEMENTS)
    return out
