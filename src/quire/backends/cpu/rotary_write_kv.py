"""rotary_write_kv on the CPU: the two kernels, one after the other."""

from torch import Tensor

from quire.backends.cpu import _native, rotary, write_kv

IMPLEMENTS = "rotary_write_kv"
why_not = _native.why_not


def run(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, kv: Tensor, slot_mapping: Tensor
) -> tuple[Tensor, Tensor]:
    """See quire.ops.rotary_write_kv."""
    q, k = rotary.run(q, k, positions, cos_sin)
    write_kv.run(k, v, kv, slot_mapping)
    return q, kv
