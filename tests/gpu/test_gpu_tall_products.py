"""Gate and up of many rows: numbers of rows and sizes that fill no tile, against products in float64."""

import op_parity
import pytest
import torch

from quire.backends.cuda import _tall_product, linear_silu_mul
from quire.ops.linear_silu_mul import TOLERANCES
from quire.ops.registry import specs

DTYPES = (torch.bfloat16, torch.float16)
SIZES = [(4864, 896), (8960, 1536), (1000, 200), (64, 64), (72, 8), (2000, 4000)]  # outputs, inputs
ROWS = (1, 127, 257, 1000, 4100)
pytestmark = pytest.mark.skipif(bool(linear_silu_mul.why_not()), reason="made for Hopper GPUs")


def random_product(num_rows, out_size, in_size, dtype):
    """x, weight, bias on the GPU; x is a view whose rows are further apart than they are long."""
    torch.manual_seed(num_rows)
    x = torch.randn(num_rows, in_size + 64, device="cuda").to(dtype)[:, :in_size]
    weight = (torch.randn(out_size, in_size, device="cuda") * in_size**-0.5).to(dtype)
    return x, weight, torch.randn(out_size, device="cuda").to(dtype)


def expected(x, weight, bias):
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_gated_products(num_rows, size, dtype):
    x, weight, bias = random_product(num_rows, 2 * size[0], size[1], dtype)
    for b in (None, bias):
        with op_parity.poisoned_memory():
            got = _tall_product.multiply(x, weight, b)
        gate, up = expected(x, weight, b).chunk(2, dim=-1)
        assert op_parity.error(got, (gate * torch.sigmoid(gate) * up).cpu()) < TOLERANCES[dtype].relative / 2
        again = _tall_product.multiply(x, weight, b)
        assert torch.equal(got, again), "the same sums in the same order"


def test_a_rows_result_does_not_depend_on_the_others():
    x, weight, _ = random_product(3000, 2 * 1536, 896, torch.bfloat16)
    whole = _tall_product.multiply(x, weight, None)
    for rows in (slice(0, 1000), slice(777, 2300)):
        part = _tall_product.multiply(x[rows], weight, None)
        assert torch.equal(part, whole[rows])


def test_the_operator_takes_it_for_many_rows():
    x, weight, _ = random_product(2 * _tall_product.LEAST_ROWS, 2 * 2048, 1024, torch.bfloat16)
    assert _tall_product.takes(x, weight, None)
    got = linear_silu_mul.run(x, weight)
    reference = specs()["linear_silu_mul"].reference(x.cpu().float(), weight.cpu().float())
    assert op_parity.error(got, reference) < TOLERANCES[torch.bfloat16].relative


def test_the_largest_finite_sums_and_what_is_beyond():
    """gate · sigmoid(gate) at both ends: no NaN where the reference has none."""
    x = torch.zeros(1024, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.zeros(256, 64, device="cuda", dtype=torch.bfloat16)
    x[:, 0] = torch.logspace(-3, 37, 1024, device="cuda").bfloat16()
    x[512:, 0] *= -1
    weight[:128, 0] = weight[128:, 1] = 1
    x[:, 1] = 1
    got = _tall_product.multiply(x, weight, None)
    reference = specs()["linear_silu_mul"].reference(x.cpu(), weight.cpu())
    assert torch.allclose(got.cpu().float(), reference.float(), rtol=2**-7, atol=1e-30)
