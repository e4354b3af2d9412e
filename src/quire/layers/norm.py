"""Norm layers, over the last dimension."""

import torch
from torch import Tensor, nn

from quire.layers.build import Build


class RmsNorm(nn.Module):
    """Root-mean-square norm; x [..., size] -> like x. Source: arXiv:1910.07467."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__()
        self.ops = build.ops
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=build.dtype, device=build.device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Norm of residual + x, and that sum; gives `residual` away. x, residual [T, size]; None = nothing to add yet."""
        if residual is None:
            return self.ops.rms_norm(x, self.weight, self.eps), x
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with weight and bias; x [T, size] -> [T, size]."""

    def __init__(self, build: Build, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.layer_norm = build.ops.layer_norm
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=build.dtype, device=build.device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size, dtype=build.dtype, device=build.device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(x, self.weight, self.bias, self.eps)
