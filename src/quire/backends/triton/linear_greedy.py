"""linear_greedy on the GPU: the two operators, one after the other."""

import torch
from torch import Tensor

from quire.backends.triton import greedy, linear
from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear_greedy"


def run(x: Tensor, weight: Tensor) -> Tensor:
    """See quire.ops.linear_greedy."""
    return greedy.run(linear.run(x, weight))


def pick(values: Tensor, columns: Tensor) -> Tensor:
    """Column of the largest value of each row [S, P]: the lowest among equals, -1 where one is NaN."""
    from quire.backends.triton._kernels_decode import pick_kernel

    num_rows, num_parts = values.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=values.device)
    pick_kernel[(num_rows,)](values, columns, out, num_parts, next_power_of_2(num_parts), num_warps=1, **dependent())
    return out
