"""Norm layers: with and without a residual to add."""

import torch
import torch.nn.functional as F

from quire.layers.build import Build
from quire.layers.norm import LayerNorm, RmsNorm


def test_rms_norm_adds_the_residual_first(build: Build) -> None:
    norm = RmsNorm(build, 16, 1e-6)
    norm.weight.data.normal_()
    x, residual = torch.randn(4, 16), torch.randn(4, 16)
    normed, total = norm.add(x, residual.clone())
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (16,), norm.weight, 1e-6))


def test_the_first_norm_has_nothing_to_add(build: Build) -> None:
    norm = RmsNorm(build, 16, 1e-6)
    norm.weight.data.normal_()
    x = torch.randn(4, 16)
    normed, residual = norm.add(x, None)
    assert residual is x
    torch.testing.assert_close(normed, norm(x))


def test_layer_norm(build: Build) -> None:
    norm = LayerNorm(build, 16)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(4, 16)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (16,), norm.weight, norm.bias))
