"""rotary_attention on Hopper GPUs: one kernel for decoding steps, the two operators one after the other for all else."""

import torch
from torch import Tensor

from quire.backends.cuda import paged_attention
from quire.backends.cuda._product import why_not
from quire.backends.cuda._split_attention import attend, can_turn, fits
from quire.backends.triton import rotary_write_kv
from quire.ops.forward_batch import ForwardBatch

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "rotary_attention"


def run(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0
) -> Tensor:
    """See quire.ops.rotary_attention."""
    if not (q.shape[0] and fwd.only_decodes and fits(q, kv, window) and can_turn(k, v, cos_sin, q.shape[2])):
        q, _ = rotary_write_kv.run(q, k, v, fwd.positions, cos_sin, kv, fwd.slot_mapping)
        return paged_attention.run(q, kv, fwd, scale, window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    attend(q, kv, fwd, scale, out, (k, v, cos_sin))
    return out
