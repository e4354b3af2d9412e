"""rotary_attention on the GPU: the two operators one after the other."""

from torch import Tensor

from quire.backends.triton import paged_attention, rotary_write_kv
from quire.backends.triton._support import why_not
from quire.ops.forward_batch import ForwardBatch

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "rotary_attention"


def run(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0
) -> Tensor:
    """See quire.ops.rotary_attention."""
    q, kv = rotary_write_kv.run(q, k, v, fwd.positions, cos_sin, kv, fwd.slot_mapping)
    return paged_attention.run(q, kv, fwd, scale, window)
