"""write_kv on the CPU: csrc/cpu/api.cpp, copies of whole heads."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.write_kv import write_kv as reference

IMPLEMENTS = "write_kv"
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("13q")  # WriteKvArgs
_call = _native.operator("quire_write_kv")


def run(k: Tensor, v: Tensor, kv: Tensor, slot_mapping: Tensor) -> None:
    """See quire.ops.write_kv. Takes fp32 and bf16, the cache of the same dtype; other inputs go to the reference."""
    if not _supported(k, v, kv, slot_mapping):
        return reference(k, v, kv, slot_mapping)
    _, num_blocks, block_size, heads, head_dim = kv.shape
    status = _call(
        _pack(
            k.data_ptr(),
            v.data_ptr(),
            kv.data_ptr(),
            slot_mapping.data_ptr(),
            k.shape[0],
            heads,
            head_dim,
            num_blocks * block_size,
            *k.stride()[:2],
            *v.stride()[:2],
            _codes[kv.dtype],
        )
    )
    if status:
        raise _native.error(status, IMPLEMENTS)


def _supported(k: Tensor, v: Tensor, kv: Tensor, slot_mapping: Tensor) -> bool:
    return (
        kv.dtype in _codes
        and k.dtype is kv.dtype
        and v.dtype is kv.dtype
        and k.shape == v.shape
        and k.shape[1:] == kv.shape[3:]
        and k.stride(2) == 1
        and v.stride(2) == 1
        and kv.is_contiguous()
        and slot_mapping.dtype is torch.int64
        and slot_mapping.is_contiguous()
        and slot_mapping.shape[0] == k.shape[0]
    )
