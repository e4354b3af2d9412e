"""How decode_layers puts its kernels together, with references in place of them: no GPU is needed for that."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.backends.cuda import _ahead
from quire.backends.cuda import decode_layers as module
from quire.backends.cuda._product import Undivided
from quire.backends.cuda._product_tiles import Joined, Tile
from quire.ops.decode_layers import SPEC, decode_layers
from quire.ops.registry import specs

TILE = Tile(1, 1, 64, 4, 1)
KINDS = {
    "both": Joined(TILE, TILE, TILE, TILE),
    "inner": Joined(TILE, TILE, TILE, None),
    "outer": Joined(TILE, None, TILE, TILE),
}


def add(x: Tensor, weight: Tensor, tile: Tile, residual: Tensor, gains: Tensor, eps: float) -> Undivided:
    """As _product.add, in two parts of unlike lengths."""
    residual += x @ weight.T
    parts = residual.float().pow(2).tensor_split([17], dim=1)
    return Undivided(residual * gains, torch.stack([part.sum(1) for part in parts]), eps)


def multiply(x: Any, weight: Tensor, bias: Tensor | None, tile: Tile, gated: bool = False) -> Tensor:
    assert isinstance(x, Undivided), "products of whole rows are the ordinary operator's"
    whole = x.values * torch.rsqrt(x.squares.sum(0) / x.values.shape[1] + x.eps)[:, None].to(x.values.dtype)
    return specs()["linear_silu_mul" if gated else "linear"].reference(whole, weight, bias)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    made: list[str] = []

    def noted(name: str, run: Any) -> Any:
        return lambda *given, **named: (made.append(name), run(*given, **named))[1]

    for name in ("rms_norm", "add_rms_norm", "linear", "linear_silu_mul", "rotary_attention"):
        monkeypatch.setattr(module, name, SimpleNamespace(run=noted(name, specs()[name].reference)))
    monkeypatch.setattr(module._product, "add", noted("add", add))
    monkeypatch.setattr(module._product, "multiply", noted("multiply", multiply))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", range(3))
def test_layers_give_what_the_reference_gives(kind, index, calls, monkeypatch):
    monkeypatch.setattr(module, "_tiles", lambda net, rows: KINDS[kind])

    def inputs() -> dict[str, Any]:
        made = list(SPEC.make_inputs(torch.Generator().manual_seed(3), torch.float32, torch.device("cpu")))
        return made[index]

    ours, theirs = inputs(), inputs()
    got, expected = module.run(**ours), decode_layers(**theirs)
    live = ours["fwd"].seq_lens > 0
    torch.testing.assert_close(got[live], expected[live], rtol=1e-4, atol=1e-5)
    for a, b in zip(ours["fwd"].kv_caches, theirs["fwd"].kv_caches, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
    # Two layers: the norm within each, and the one between them.
    assert calls.count("add") == {"both": 3, "inner": 2, "outer": 1}[kind] == calls.count("multiply")


def test_a_model_of_one_layer_that_is_gone_through_ahead_asks_for_every_kernel(calls, monkeypatch):
    monkeypatch.setattr(module, "_tiles", lambda net, rows: KINDS["both"])
    made = next(iter(SPEC.make_inputs(torch.Generator().manual_seed(3), torch.float32, torch.device("cpu"))))
    net, fwd = made["net"], made["fwd"]
    object.__setattr__(net, "layers", net.layers[:1])
    fwd.kv_caches = fwd.kv_caches[:1]
    with _ahead.collect(lambda job: None):
        module.run(net, fwd)
    assert calls.count("add") == 3 and calls.count("multiply") == 3
