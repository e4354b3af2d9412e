"""rotary on the CPU, in place: csrc/cpu/rowwise.h."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.rotary import rotary as reference

IMPLEMENTS = "rotary"
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("14q")  # RotaryArgs
_call = _native.operator("quire_rotary")


def run(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """See quire.ops.rotary. Rotates q and k in place. Takes fp32 and bf16 heads; other inputs go to the reference."""
    if not _supported(q, k, positions, cos_sin):
        return reference(q, k, positions, cos_sin)
    tokens, q_heads, _ = q.shape
    max_position, rot_dim = cos_sin.shape
    status = _call(
        _pack(
            q.data_ptr(),
            k.data_ptr(),
            positions.data_ptr(),
            cos_sin.data_ptr(),
            tokens,
            q_heads,
            k.shape[1],
            rot_dim,
            max_position,
            *q.stride()[:2],
            *k.stride()[:2],
            _codes[q.dtype],
        )
    )
    if status:
        raise _native.error(status, IMPLEMENTS)
    return q, k


def _supported(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> bool:
    return (
        q.dtype in _codes
        and k.dtype is q.dtype
        and q.stride(2) == 1
        and k.stride(2) == 1
        and positions.dtype is torch.int64
        and positions.is_contiguous()
        and cos_sin.dtype is torch.float32
        and cos_sin.is_contiguous()
        and positions.shape[0] == q.shape[0] == k.shape[0]
        and cos_sin.shape[1] <= q.shape[2]
    )
