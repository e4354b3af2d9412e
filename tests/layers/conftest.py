"""A Build that makes real parameters on the CPU, with the torch references."""

import pytest
import torch

from quire.layers.build import Build
from quire.ops.registry import resolve
from quire.quant.none import Unquantized


@pytest.fixture
def build() -> Build:
    ops, _ = resolve(("torch",))
    return Build(ops, torch.float32, 64, Unquantized(ops.linear, ops.linear_silu_mul), torch.device("cpu"))
