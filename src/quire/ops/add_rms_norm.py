"""add_rms_norm: the residual addition and the norm that follows it, in one pass."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn
from quire.ops.rms_norm import rms_norm


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual + x, and its root-mean-square norm.

    x, residual  [T, H], contiguous
    weight       [H]
    Returns      (normed [T, H], new residual [T, H]); the sum is rounded to x.dtype before it is normed. An implementation may
                 write the sum into `residual` and return that, so the caller gives `residual` away.
    """
    total = residual + x
    return rms_norm(total, weight, eps), total


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, hidden in ((1, 64), (7, 896), (33, 100)):
        yield {
            "x": randn(generator, rows, hidden, dtype=dtype, device=device),
            "residual": randn(generator, rows, hidden, dtype=dtype, device=device),
            "weight": randn(generator, hidden, dtype=dtype, device=device),
            "eps": 1e-5,
        }


SPEC = OpSpec("add_rms_norm", add_rms_norm, FLOAT_TOLERANCES, make_inputs, mutates=("residual",))
