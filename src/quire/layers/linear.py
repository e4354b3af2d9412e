"""Linear layers. Projections of one input are fused into one packed weight, so that one matrix product serves them all."""

import torch
from torch import Tensor, nn

from quire.layers.build import Build


class PackedLinear(nn.Module):
    """One weight [sum(shard_sizes), in] that holds one or more projections of the same input.

    shard_sizes  rows of the weight that each projection takes, in order; the loader fills one shard a checkpoint tensor
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, build: Build, in_size: int, shard_sizes: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.shard_sizes = shard_sizes
        self.quant = build.quant
        self.quant.create(self, in_size, sum(shard_sizes), bias, build.dtype, build.device)

    def project(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, sum(shard_sizes)]."""
        return self.quant.apply(self, x)

    def project_gated(self, x: Tensor) -> Tensor:
        """Of a layer that holds gate and up: x [T, in] -> silu(gate) · up [T, shard_sizes[0]]."""
        return self.quant.apply_gated(self, x)


class Linear(PackedLinear):
    """y = x @ weight.T + bias; x [T, in] -> [T, out]."""

    def __init__(self, build: Build, in_size: int, out_size: int, bias: bool = False) -> None:
        super().__init__(build, in_size, (out_size,), bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)


class QkvLinear(PackedLinear):
    """Queries, keys and values of one input.

    x [T, hidden] -> q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D], all views of one packed row.
    """

    def __init__(
        self, build: Build, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool = False
    ) -> None:
        self.head_counts = [num_heads, num_kv_heads, num_kv_heads]
        super().__init__(build, hidden_size, tuple(n * head_dim for n in self.head_counts), bias)
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.project(x).view(x.shape[0], -1, self.head_dim)
        q, k, v = torch.split(heads, self.head_counts, dim=1)
        return q, k, v


class GatedMlp(nn.Module):
    """SwiGLU feed-forward: down(silu(gate(x)) · up(x)), gate and up fused; x [T, hidden] -> [T, hidden]."""

    def __init__(self, build: Build, hidden_size: int, inner_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = PackedLinear(build, hidden_size, (inner_size, inner_size), bias)
        self.down_proj = Linear(build, inner_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_up_proj.project_gated(x))
        return out
