"""The other operators' references against independent implementations; on the CPU a row's bits do not depend on its batch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from quire.ops.add_rms_norm import add_rms_norm
from quire.ops.layer_norm import layer_norm
from quire.ops.linear import linear
from quire.ops.rms_norm import rms_norm
from quire.ops.rotary import rotary
from quire.ops.silu_mul import silu_mul
from quire.ops.write_kv import write_kv

DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_norms_equal_torch() -> None:
    x, residual, weight, bias = randn(7, 48), randn(7, 48, seed=1), randn(48, seed=2), randn(48, seed=3)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), F.rms_norm(x, (48,), weight, 1e-6))
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), F.layer_norm(x, (48,), weight, bias, 1e-5))
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (48,), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_equals_torch(dtype: torch.dtype) -> None:
    x = randn(9, 66, dtype=dtype) * 4
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(silu_mul(x), F.silu(gate) * up)


@pytest.mark.parametrize("rotated", [16, 8])
def test_rotary_equals_transformers(rotated: int) -> None:
    q, k = randn(6, 4, 16), randn(6, 2, 16, seed=1)
    positions, angles = torch.tensor([0, 3, 3, 9, 1, 2]), randn(10, rotated // 2, seed=2)
    found_q, found_k = rotary(q.clone(), k.clone(), positions, torch.cat((angles.cos(), angles.sin()), dim=1))
    both = torch.cat((angles, angles), dim=1)[positions]
    inputs = (x[..., :rotated].transpose(0, 1)[None] for x in (q, k))
    expected = apply_rotary_pos_emb(*inputs, both.cos()[None], both.sin()[None])
    for found, plain, turned in zip((found_q, found_k), (q, k), expected, strict=True):
        torch.testing.assert_close(found[..., :rotated], turned[0].transpose(0, 1))
        assert torch.equal(found[..., rotated:], plain[..., rotated:])


def test_write_kv_writes_each_slot_and_no_other() -> None:
    kv, k, v = torch.zeros(2, 3, 4, 2, 5), randn(3, 2, 5), randn(3, 2, 5, seed=1)
    write_kv(k, v, kv, torch.tensor([6, -1, 11]))
    assert torch.equal(kv[0, 1, 2], k[0]) and torch.equal(kv[1, 1, 2], v[0])
    assert torch.equal(kv[0, 2, 3], k[2]) and torch.equal(kv[1, 2, 3], v[2])
    assert int(kv.any(-1).any(-1).sum()) == 4


WEIGHTS = {(n, k): randn(n, k, seed=n + k) * k**-0.5 for n, k in ((33, 100), (96, 64), (768, 256))}
ROW_OPS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    **{f"linear {k}x{n}": (k, lambda x, w=w: linear(x, w.to(x.dtype))) for (n, k), w in WEIGHTS.items()},
    "rms_norm": (100, lambda x: rms_norm(x, randn(100, dtype=x.dtype), 1e-6)),
    "layer_norm": (100, lambda x: layer_norm(x, randn(100, dtype=x.dtype), randn(100, dtype=x.dtype), 1e-6)),
    "silu_mul": (2 * 4867, silu_mul),
    "log_softmax": (5000, lambda x: x.float().log_softmax(-1)),
}


@pytest.mark.parametrize("name", ROW_OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_batch(name: str, dtype: torch.dtype) -> None:
    width, run = ROW_OPS[name]
    x = randn(130, width, dtype=dtype)
    together = run(x)
    for count in (1, 2, 3, 5, 7, 8, 9, 15, 16, 31, 64, 100):
        for first in (0, 130 - count):
            assert torch.equal(run(x[first : first + count]), together[first : first + count]), (count, first)
