"""layer_norm: (x − mean) / sqrt(var + eps) · weight + bias, row by row (OPT)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension, computed in fp32.

    x [T, H]; weight, bias [H]. Returns [T, H] in x.dtype.
    """
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, hidden in ((1, 64), (7, 768), (33, 100)):
        yield {
            "x": randn(generator, rows, hidden, dtype=dtype, device=device),
            "weight": randn(generator, hidden, dtype=dtype, device=device),
            "bias": randn(generator, hidden, dtype=dtype, device=device),
            "eps": 1e-5,
        }


SPEC = OpSpec("layer_norm", layer_norm, FLOAT_TOLERANCES, make_inputs)
