"""rms_norm: x / sqrt(mean(x²) + eps) · weight, row by row. Source: arXiv:1910.07467."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32.

    x       [..., H]   last dimension contiguous ([T, H], or [T, heads, D] for norms on heads)
    weight  [H]
    Returns like x, contiguous, in x.dtype; the normalised value is rounded to x.dtype before the weight multiplies it, as in
            transformers' Qwen2RMSNorm and LlamaRMSNorm
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for shape in ((1, 64), (7, 896), (33, 100), (3, 5, 64)):
        yield {
            "x": randn(generator, *shape, dtype=dtype, device=device),
            "weight": randn(generator, shape[-1], dtype=dtype, device=device),
            "eps": 1e-6,
        }


SPEC = OpSpec("rms_norm", rms_norm, FLOAT_TOLERANCES, make_inputs)
