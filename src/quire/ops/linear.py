"""linear: out = x @ weight.T (+ bias)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product of rows with a weight kept as [out, in].

    x       [T, K]   last dimension contiguous
    weight  [N, K]   contiguous
    bias    [N] or None
    Returns [T, N] in x.dtype; accumulates in fp32.
    On the CPU a row's result does not depend on T or on the other rows.
    """
    rows = x.shape[0]
    if x.device.type == "cpu" and rows % 8:
        # The CPU library picks another summation order for few rows; padding to a multiple of 8 keeps one order for all.
        return F.linear(F.pad(x, (0, 0, 0, 8 - rows % 8)), weight, bias)[:rows]
    return F.linear(x, weight, bias)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, k, n, with_bias in ((1, 64, 96, True), (5, 100, 33, False), (8, 896, 64, True), (37, 257, 130, True)):
        yield {
            "x": randn(generator, rows, k, dtype=dtype, device=device),
            "weight": randn(generator, n, k, dtype=dtype, device=device) * k**-0.5,
            "bias": randn(generator, n, dtype=dtype, device=device) if with_bias else None,
        }


SPEC = OpSpec("linear", linear, FLOAT_TOLERANCES, make_inputs)
