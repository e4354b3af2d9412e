"""Plain weights: a matrix in the model's dtype, as the checkpoint has it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quire.errors import UnsupportedModel


def matches(quantization_config: dict[str, Any] | None) -> bool:
    """Whether a checkpoint with this `quantization_config` (None = no such key) holds plain weights."""
    return not quantization_config


def refuse_quantized(quantization_config: dict[str, Any] | None, source: str) -> None:
    """Raises UnsupportedModel for a checkpoint whose weights are stored in a quantized format."""
    if not matches(quantization_config):
        method = (quantization_config or {}).get("quant_method", "unknown")
        raise UnsupportedModel(f"{source}: quantization_config names {method!r}; only plain weights are implemented")


class Unquantized:
    """How a linear layer keeps and uses plain weights. A weight format is a class with these methods."""

    def __init__(self, linear: Callable[..., Tensor], linear_silu_mul: Callable[..., Tensor]) -> None:
        self.linear = linear
        self.linear_silu_mul = linear_silu_mul

    def create(
        self, layer: nn.Module, in_size: int, out_size: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Gives `layer` its parameters: weight [out, in] and bias [out] or None."""
        weight = torch.empty(out_size, in_size, dtype=dtype, device=device)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        empty = torch.empty(out_size, dtype=dtype, device=device) if bias else None
        layer.register_parameter("bias", None if empty is None else nn.Parameter(empty, requires_grad=False))

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        return self.linear(x, layer.weight, layer.bias)

    def apply_gated(self, layer: nn.Module, x: Tensor) -> Tensor:
        """silu(gate) · up of a layer that holds both: x [T, in] -> [T, out / 2]."""
        return self.linear_silu_mul(x, layer.weight, layer.bias)
