"""silu_mul: silu(gate) · up, gate and up side by side in one row."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def silu_mul(x: Tensor) -> Tensor:
    """SwiGLU's activation.

    x       [T, 2·I]: gate in [:, :I], up in [:, I:]; last dimension contiguous
    Returns [T, I] in x.dtype; silu(gate) is rounded to x.dtype before the product, as in transformers' MLP
    """
    gate, up = x.chunk(2, dim=-1)
    if x.device.type != "cpu":
        return F.silu(gate) * up
    # On the CPU F.silu computes the last few elements of a thread's share by another exponential than the others, so that a row's
    # result would depend on its place in the batch; torch.exp has one for all.
    wide = gate if gate.dtype == torch.float64 else gate.float()
    return (wide / (1.0 + torch.exp(-wide))).to(x.dtype) * up


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, inner in ((1, 64), (9, 33), (40, 768)):
        yield {"x": randn(generator, rows, 2 * inner, dtype=dtype, device=device)}


SPEC = OpSpec("silu_mul", silu_mul, FLOAT_TOLERANCES, make_inputs)
