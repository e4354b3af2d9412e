"""greedy on the CPU: csrc/cpu/rowwise.h."""

import torch
from torch import Tensor

from quire.backends.cpu import _native
from quire.ops.greedy import greedy as reference

IMPLEMENTS = "greedy"
why_not = _native.why_not

_codes = _native.DTYPE_CODES
_pack = _native.packer("6q")  # GreedyArgs
_call = _native.operator("quire_greedy")


def run(logits: Tensor) -> Tensor:
    """See quire.ops.greedy. Takes fp32 and bf16 [S, V]; other inputs go to the reference."""
    code = _codes.get(logits.dtype)
    if code is None or logits.dim() != 2 or logits.stride(1) != 1:
        return reference(logits)
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64)
    status = _call(_pack(logits.data_ptr(), out.data_ptr(), rows, vocab, logits.stride(0), code))
    if status:
        raise _native.error(status, IMPLEMENTS)
    return out
