"""embedding on the CPU: csrc/cpu/api.cpp, copies of rows, whatever their dtype."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.embedding import embedding as reference

IMPLEMENTS = "embedding"
why_not = _native.why_not

_pack = _native.packer("6q")  # EmbeddingArgs
_call = _native.operator("quire_embedding")


def run(ids: Tensor, weight: Tensor) -> Tensor:
    """See quire.ops.embedding. Takes ids [T] int64 and a contiguous table; other inputs go to the reference."""
    if ids.dtype is not torch.int64 or ids.dim() != 1 or not ids.is_contiguous() or not weight.is_contiguous():
        return reference(ids, weight)
    vocab, hidden = weight.shape
    tokens = ids.shape[0]
    out = torch.empty(tokens, hidden, dtype=weight.dtype)
    row_bytes = hidden * weight.element_size()
    status = _call(_pack(ids.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, vocab, row_bytes))
    if status:
        raise _native.error(status, IMPLEMENTS)
    return out
