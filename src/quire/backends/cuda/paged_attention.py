"""paged_attention on Hopper GPUs: own kernels for prompts and for decoding rows, Triton's for all that they do not take."""

import torch
from torch import Tensor

from quire.backends.cuda import _prefill_attention, _split_attention
from quire.backends.cuda._product import why_not
from quire.backends.triton import paged_attention
from quire.backends.triton._split_keys import decode
from quire.ops.forward_batch import ForwardBatch

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "paged_attention"


def run(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0) -> Tensor:
    """See quire.ops.paged_attention."""
    num_tokens, num_sequences = q.shape[0], fwd.num_sequences
    if not num_tokens or not num_sequences:
        return paged_attention.run(q, kv, fwd, scale, window)
    splits = _split_attention.fits(q, kv, window)
    if not (splits if fwd.only_decodes else _prefill_attention.fits(q, kv, window)):
        return paged_attention.run(q, kv, fwd, scale, window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not fwd.only_decodes:
        _prefill_attention.prefill(q, kv, fwd, scale, out)
    if splits and (fwd.max_query_len == 1 or num_sequences > 1):
        _split_attention.attend(q, kv, fwd, scale, out)
    elif fwd.max_query_len == 1 or num_sequences > 1:
        decode(q, kv, fwd, scale, window, out)
    return out
