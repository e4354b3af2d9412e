"""draw_tokens on the GPU: the largest of each part of a row, the sum of each part's weights, then the token in the part it falls in."""

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not
from quire.ops.draw_tokens import weight_of_likeliest

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "draw_tokens"
BLOCK = 1024
TILES = 4  # blocks a part


def run(logits: Tensor, temperatures: Tensor, uniforms: Tensor, step: Tensor) -> Tensor:
    """See quire.ops.draw_tokens."""
    from quire.backends.triton._kernels_decode import draw_merge_kernel, draw_parts_kernel, greedy_parts_kernel

    num_rows, size = logits.shape
    num_parts = -(-size // (BLOCK * TILES))
    values = torch.empty(num_rows, num_parts, dtype=torch.float32, device=logits.device)
    sums = torch.empty(num_rows, num_parts, dtype=torch.float64, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        stride, parts, one = logits.stride(0), next_power_of_2(num_parts), weight_of_likeliest(size)
        greedy_parts_kernel[(num_parts, num_rows)](
            logits, values, size, stride, num_parts, TILES, BLOCK, num_warps=4, **dependent()
        )
        draw_parts_kernel[(num_parts, num_rows)](
            logits, values, sums, temperatures, size, stride, num_parts, one, parts, TILES, BLOCK, num_warps=4,
            **dependent(),
        )  # fmt: skip
        draw_merge_kernel[(num_rows,)](
            logits, values, sums, temperatures, uniforms, step, out, size, stride, num_parts, uniforms.stride(0), one,
            parts, BLOCK * TILES, num_warps=4, **dependent(),
        )  # fmt: skip
    return out
