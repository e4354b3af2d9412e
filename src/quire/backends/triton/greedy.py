"""greedy on the GPU: the largest of each part of a row, then the largest of the parts."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "greedy"
BLOCK = 1024
TILES = 4  # blocks a part


def run(logits: Tensor) -> Tensor:
    """See quire.ops.greedy."""
    from quire.backends.triton._kernels_decode import greedy_merge_kernel, greedy_parts_kernel

    num_rows, size = logits.shape
    num_parts = -(-size // (BLOCK * TILES))
    values = torch.empty(num_rows, num_parts, dtype=torch.float32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        stride = logits.stride(0)
        greedy_parts_kernel[(num_parts, num_rows)](
            logits, values, size, stride, num_parts, TILES, BLOCK, num_warps=4, **dependent()
        )
        greedy_merge_kernel[(num_rows,)](
            logits, values, out, size, stride, num_parts, next_power_of_2(num_parts), BLOCK * TILES, num_warps=4,
            **dependent(),
        )  # fmt: skip
    return out
