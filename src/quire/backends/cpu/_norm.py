"""What the norms of the CPU backend share: one kernel, csrc/cpu/rowwise.h norm(), with a residual or a bias or neither."""

import torch
from torch import Tensor

from quire.backends.cpu import _native

_codes = _native.DTYPE_CODES
_pack = _native.packer("11qd")  # NormArgs
_call = _native.operator("quire_norm")


def supported(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the kernel takes x [T, H] or [T, heads, H], last dimension contiguous, and these vectors [H]."""
    if x.dtype not in _codes or not 2 <= x.dim() <= 3 or x.stride()[-1] != 1:
        return False
    return _is_vector(weight, x) and (bias is None or _is_vector(bias, x))


def _is_vector(v: Tensor, x: Tensor) -> bool:
    return v.dtype is x.dtype and v.numel() == x.shape[-1] > 0 and v.is_contiguous()


def norm(op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The norm of x, or of residual + x, which then is left in `residual`."""
    shape, strides = x.shape, x.stride()
    inner, inner_stride = (shape[1], strides[1]) if len(shape) == 3 else (1, 0)
    out = torch.empty_like(x) if x.is_contiguous() else torch.empty(shape, dtype=x.dtype)  # the first is quicker
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
