"""Packed linear layers against the separate products they stand for."""

import torch
import torch.nn.functional as F

from quire.layers.build import Build
from quire.layers.linear import GatedMlp, Linear, QkvLinear
from quire.ops.registry import resolve


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return module


def test_layers_built_by_default_take_no_memory() -> None:
    layer = Linear(Build.plain(resolve(("torch",))[0], torch.bfloat16, 64), 10**6, 10**6, bias=True)
    assert layer.weight.is_meta and layer.weight.shape == (10**6, 10**6) and layer.weight.dtype == torch.bfloat16


def test_qkv_is_three_products_in_one_row(build: Build) -> None:
    layer = randomised(QkvLinear(build, 32, num_heads=4, num_kv_heads=2, head_dim=8, bias=True))
    x = torch.randn(5, 32)
    weights, biases = layer.weight.split([32, 16, 16]), layer.bias.split([32, 16, 16])
    outputs = layer(x)
    for found, weight, bias, heads in zip(outputs, weights, biases, (4, 2, 2), strict=True):
        assert found.shape == (5, heads, 8)
        torch.testing.assert_close(found.flatten(1), F.linear(x, weight, bias))
    assert len({found.untyped_storage().data_ptr() for found in outputs}) == 1


def test_gated_mlp(build: Build) -> None:
    layer = randomised(GatedMlp(build, 16, 24))
    x = torch.randn(3, 16)
    gate, up = layer.gate_up_proj.weight.chunk(2)
    expected = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), layer.down_proj.weight)
    torch.testing.assert_close(layer(x), expected)


def test_a_layer_without_bias_has_none(build: Build) -> None:
    assert [name for name, _ in Linear(build, 4, 6).named_parameters()] == ["weight"]
