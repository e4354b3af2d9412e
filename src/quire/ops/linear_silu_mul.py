"""linear_silu_mul: the gate and up projections of a feed-forward layer and the activation that joins them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, Tolerance, randn
from quire.ops.linear import linear
from quire.ops.silu_mul import silu_mul


def linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu_mul of linear.

    x       [T, K]    last dimension contiguous
    weight  [2·I, K]  contiguous: gate, then up
    bias    [2·I] or None
    Returns [T, I] in x.dtype; the products are rounded to x.dtype before the activation
    """
    return silu_mul(linear(x, weight, bias))


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, k, inner, with_bias in (
        (1, 64, 48, True),
        (1, 300, 33, False),
        (5, 100, 17, False),
        (1, 2100, 130, True),
    ):
        yield {
            "x": randn(generator, rows, k, dtype=dtype, device=device),
            "weight": randn(generator, 2 * inner, k, dtype=dtype, device=device) * k**-0.5,
            "bias": randn(generator, 2 * inner, dtype=dtype, device=device) if with_bias else None,
        }


# Four roundings in a row: to x.dtype after both products, after silu, and at the end.
TOLERANCES = {**FLOAT_TOLERANCES, torch.float16: Tolerance(4e-3), torch.bfloat16: Tolerance(2e-2)}

SPEC = OpSpec("linear_silu_mul", linear_silu_mul, TOLERANCES, make_inputs)
