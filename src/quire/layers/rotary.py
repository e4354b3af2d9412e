"""Rotary position embedding: the table of angles for each way of stretching it, and the layer that applies it.

Sources: arXiv:2104.09864 (RoPE), arXiv:2306.15595 (linear), arXiv:2309.00071 (yarn), the Llama 3.1 release (llama3). Both spellings
of the config are read: transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.layers.build import Build

IMPLEMENTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    theta    base of the geometric series of frequencies
    kind     one of IMPLEMENTED
    scaling  the parameters of that kind
    """

    theta: float
    kind: str = "default"
    scaling: HfConfig = field(default_factory=lambda: HfConfig({}))
    max_position: int = 0

    @classmethod
    def from_hf(cls, hf: HfConfig, default_theta: float = 10000.0) -> "RopeConfig":
        """Reads either spelling; refuses what is not implemented."""
        values: dict[str, Any] = {**hf.dict("rope_scaling", {}), **hf.dict("rope_parameters", {})}
        if any(isinstance(value, dict) for value in values.values()):
            raise UnsupportedModel(f"{hf.source}: rope parameters per layer type are not implemented")
        scaling = HfConfig(values, f"{hf.source}: rope parameters")
        kind = scaling.str("rope_type", scaling.str("type", "default"))
        if kind not in IMPLEMENTED:
            raise UnsupportedModel(f"{hf.source}: rope_type is {kind!r}; implemented are {', '.join(IMPLEMENTED)}")
        partial = scaling.float("partial_rotary_factor", hf.float("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise UnsupportedModel(f"{hf.source}: partial_rotary_factor is {partial}; only 1.0 is implemented")
        theta = scaling.float("rope_theta", hf.float("rope_theta", default_theta))
        return cls(theta, kind, scaling, hf.int("max_position_embeddings"))

    def frequencies(self, head_dim: int) -> tuple[Tensor, float]:
        """Angle per position of each pair [head_dim / 2] fp32, and the factor on cos and sin."""
        base = self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        plain = 1.0 / base
        if self.kind == "linear":
            return plain / self.scaling.float("factor"), 1.0
        if self.kind == "llama3":
            return _llama3(plain, self.scaling), 1.0
        if self.kind == "yarn":
            return _yarn(plain, head_dim, self)
        return plain, 1.0

    def table(self, head_dim: int, num_positions: int) -> Tensor:
        """[num_positions, head_dim] fp32: cos of each angle, then sin."""
        frequencies, factor = self.frequencies(head_dim)
        angles = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1) * factor


def _llama3(plain: Tensor, scaling: HfConfig) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended linearly in original_length / wavelength."""
    factor = scaling.float("factor")
    low, high = scaling.float("low_freq_factor"), scaling.float("high_freq_factor")
    original = scaling.int("original_max_position_embeddings")
    wavelength = 2 * math.pi / plain
    keep = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * plain / factor + keep * plain


def _yarn(plain: Tensor, head_dim: int, rope: RopeConfig) -> tuple[Tensor, float]:
    """Pairs that turn more than beta_fast times within the original length are kept, fewer than beta_slow times stretched."""
    scaling = rope.scaling
    original = scaling.int("original_max_position_embeddings", rope.max_position)
    factor = scaling.float("factor")

    def pair_of(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = pair_of(scaling.float("beta_fast", 32.0))
    high = pair_of(scaling.float("beta_slow", 1.0))
    if scaling.bool("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    stretch = ((torch.arange(head_dim // 2).float() - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return plain / factor * stretch + plain * (1 - stretch), _yarn_magnitude(scaling, factor)


def _yarn_magnitude(scaling: HfConfig, factor: float) -> float:
    """What cos and sin are multiplied by, so that the attention's entropy stays what it was."""

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = scaling.float("attention_factor", None)
    if given is not None:
        return given
    mscale, mscale_all_dim = scaling.float("mscale", None), scaling.float("mscale_all_dim", None)
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


class Rotary(nn.Module):
    """Rotates queries and keys by their positions; one table of angles serves all layers that share the module."""

    cos_sin: Tensor

    def __init__(self, build: Build, rope: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.rotary = build.ops.rotary
        self.rope = rope
        empty = torch.empty(build.max_model_len, head_dim, dtype=torch.float32, device=build.device)
        self.register_buffer("cos_sin", empty, persistent=False)

    def fill_buffers(self, device: torch.device) -> None:
        """Computes the table on `device`; the loader calls it once the weights are in place."""
        num_positions, head_dim = self.cos_sin.shape
        self.cos_sin = self.rope.table(head_dim, num_positions).to(device)

    def forward(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T], q [T, Hq, D], k [T, Hkv, D] -> (q, k) rotated; gives q and k away."""
        return self.rotary(q, k, positions, self.cos_sin)
