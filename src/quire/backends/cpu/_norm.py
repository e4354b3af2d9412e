"""What the norms of the CPU backend share: one kernel, csrc/cpu/rowwise.h norm(), with a residual or a bias or neither."""

import torch
from torch import Tensor

from quire.backends.cpu import _native

_codes = _native.DTYPE_CODES
_pack = _native.packer("11qd")  # NormArgs
_call = _native.operator("quire_norm")


def supported(x: Tensor, *vectors: Tensor) -> bool:
    """Whether the kernel takes x [T, H] or [T, heads, H], last dimension contiguous, and these vectors [H]."""
    dtype, hidden = x.dtype, x.shape[-1]
    if dtype not in _codes or x.dim() not in (2, 3) or x.stride(-1) != 1 or not hidden:
        return False
    return all(v.dtype is dtype and v.is_contiguous() and v.shape[0] == hidden for v in vectors)


def norm(op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The norm of x, or of residual + x, which then is left in `residual`."""
    shape, strides = x.shape, x.stride()
    inner, inner_stride = (shape[1], strides[1]) if len(shape) == 3 else (1, 0)
    out = torch.empty(shape, dtype=x.dtype)
    status = _call(
        _pack(
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            shape[0],
            inner,
            shape[-1],
            strides[0],
            inner_stride,
            _codes[x.dtype],
            eps,
        )
    )
    if status:
        raise _native.error(status, op)
    return out
