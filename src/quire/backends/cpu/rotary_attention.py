"""rotary_attention on the CPU: the two operators one after the other."""

from torch import Tensor

from quire.backends.cpu import _native, paged_attention, rotary_write_kv
from quire.ops.forward_batch import ForwardBatch

IMPLEMENTS = "rotary_attention"
why_not = _native.why_not


def run(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0
) -> Tensor:
    """See quire.ops.rotary_attention."""
    q, kv = rotary_write_kv.run(q, k, v, fwd.positions, cos_sin, kv, fwd.slot_mapping)
    return paged_attention.run(q, kv, fwd, scale, window)
