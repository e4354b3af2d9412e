"""Rotary position embedding: the table of angles for each way of stretching it, and the layer that applies it.

Sources: arXiv:2104.09864 (RoPE), arXiv:2306.15595 (linear), arXiv:2309.00071 (yarn), the Llama 3.1 release (llama3). Both spellings
of the config are read: transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).
"""

import math
from dataclasses import dataclass
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

    theta            base of the geometric series of frequencies
    kind             one of IMPLEMENTED
    factor           how much longer than original_length, the length it was trained for, the model's reach is made
    low_freq_factor, high_freq_factor    of llama3
    beta_fast, beta_slow, truncate       of yarn
    magnitude        multiplies cos and sin
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0

    @classmethod
    def from_hf(cls, hf: HfConfig, default_theta: float = 10000.0) -> "RopeConfig":
        """Reads either spelling; refuses what is not implemented."""
        values: dict[str, Any] = {**hf.dict("rope_parameters", {}), **hf.dict("rope_scaling", {})}
        if any(isinstance(value, dict) for value in values.values()):
            raise UnsupportedModel(f"{hf.source}: rope parameters per layer type are not implemented")
        rope = HfConfig(values, f"{hf.source}: rope parameters")
        kind = rope.str("rope_type", rope.str("type", "default"))
        if kind not in IMPLEMENTED:
            raise UnsupportedModel(f"{hf.source}: rope_type is {kind!r}; implemented are {', '.join(IMPLEMENTED)}")
        partial = rope.float("partial_rotary_factor", hf.float("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise UnsupportedModel(f"{hf.source}: partial_rotary_factor is {partial}; only 1.0 is implemented")
        theta = rope.float("rope_theta", hf.float("rope_theta", default_theta))
        found = cls(theta, kind, **_stretch(kind, rope, hf.int("max_position_embeddings")))
        if theta <= 1 or found.factor <= 0 or found.low_freq_factor == found.high_freq_factor:
            raise UnsupportedModel(f"{hf.source}: rope parameters {values} with theta {theta} make no angles")
        return found

    def frequencies(self, head_dim: int) -> Tensor:
        """Angle per position of each pair: [head_dim / 2] fp32."""
        base = self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        plain = 1.0 / base
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return _llama3(plain, self)
        if self.kind == "yarn":
            return _yarn(base, head_dim, self)
        return plain

    def table(self, head_dim: int, num_positions: int) -> Tensor:
        """[num_positions, head_dim] fp32: cos of each angle, then sin."""
        angles = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * self.frequencies(head_dim)
        return torch.cat((angles.cos(), angles.sin()), dim=1) * self.magnitude


def _stretch(kind: str, rope: HfConfig, max_position: int) -> dict[str, Any]:
    """The fields of RopeConfig that `kind` has."""
    if kind == "default":
        return {}
    if kind == "linear":
        return {"factor": rope.float("factor")}
    original = rope.int("original_max_position_embeddings", max_position)
    if original < 1:
        raise UnsupportedModel(f"{rope.source}: original_max_position_embeddings is {original}")
    if kind == "llama3":
        return {
            "factor": rope.float("factor"),
            "original_length": original,
            "low_freq_factor": rope.float("low_freq_factor"),
            "high_freq_factor": rope.float("high_freq_factor"),
        }
    factor = rope.float("factor", max_position / original)
    return {
        "factor": factor,
        "original_length": original,
        "beta_fast": rope.float("beta_fast", 32.0),
        "beta_slow": rope.float("beta_slow", 1.0),
        "truncate": rope.bool("truncate", True),
        "magnitude": _yarn_magnitude(rope, factor),
    }


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended linearly in original_length / wavelength."""
    turns = rope.original_length / (2 * math.pi / plain)
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(base: Tensor, head_dim: int, rope: RopeConfig) -> Tensor:
    """Pairs that turn more than beta_fast times within the original length are kept, those below beta_slow times stretched."""

    def pair_of(turns: float) -> float:
        return head_dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    stretch = ((torch.arange(head_dim // 2).float() - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    keep = 1 - stretch
    return 1.0 / (rope.factor * base) * (1 - keep) + 1.0 / base * keep  # rounds as transformers does


def _yarn_magnitude(rope: HfConfig, factor: float) -> float:
    """What cos and sin are multiplied by, so that attention stays as sharp as it was."""

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = rope.float("attention_factor", None)
    if given is not None:
        return given
    mscale, mscale_all_dim = rope.float("mscale", None), rope.float("mscale_all_dim", None)
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


class Rotary(nn.Module):
    """Rotates queries and keys by their positions; one table of angles serves all layers that share the module."""

    cos_sin: Tensor

    def __init__(self, build: Build, rope: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.rotary_write_kv = build.ops.rotary_write_kv
        self.rope = rope
        empty = torch.empty(build.max_model_len, head_dim, dtype=torch.float32, device=build.device)
        self.register_buffer("cos_sin", empty, persistent=False)

    def fill_buffers(self, device: torch.device) -> None:
        """Computes the table on `device`; the loader calls it once the weights are in place."""
        num_positions, head_dim = self.cos_sin.shape
        self.cos_sin = self.rope.table(head_dim, num_positions).to(device)

    def forward(self, positions: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, slot_mapping: Tensor) -> Tensor:
        """positions [T], q [T, Hq, D], k and v [T, Hkv, D] -> q rotated; k rotated and v go to their slots of kv. Gives q and k away."""
        return self.rotary_write_kv(q, k, v, positions, self.cos_sin, kv, slot_mapping)[0]
