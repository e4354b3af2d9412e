"""linear_greedy: the likeliest token of each row, from hidden states and the weight of the head."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn
from quire.ops.greedy import greedy
from quire.ops.linear import linear


def linear_greedy(x: Tensor, weight: Tensor) -> Tensor:
    """greedy of linear; logits need not exist as a whole.

    x       [S, K]   last dimension contiguous
    weight  [V, K]   contiguous
    Returns [S] int64, as quire.ops.greedy: logits are rounded to x.dtype before they are compared
    """
    return greedy(linear(x, weight))


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, k, vocab in ((1, 64, 100), (5, 100, 3001), (70, 128, 33_000)):
        x = randn(generator, rows, k, dtype=dtype, device=device)
        weight = randn(generator, vocab, k, dtype=dtype, device=device) * k**-0.5
        # One output of each row is the largest by far, whatever the rounding; another row has none.
        places = torch.randperm(vocab, generator=generator)[:rows].to(device)
        weight[places] = x * 8 / k
        if rows > 1:
            x[rows // 2, k // 2] = float("inf")
        yield {"x": x, "weight": weight}


SPEC = OpSpec("linear_greedy", linear_greedy, FLOAT_TOLERANCES, make_inputs)
