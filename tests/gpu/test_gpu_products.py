"""Own products of the CUDA backend: every tile of the tables, at odd numbers of rows, against products in float64."""

import op_parity
import pytest
import torch

from quire.backends.cuda import _product, _product_tiles, linear, linear_greedy, linear_silu_mul
from quire.ops.linear_silu_mul import TOLERANCES
from quire.ops.registry import implementations, specs
from quire.ops.rms_norm import rms_norm

CUDA = implementations("cuda")
DTYPES = (torch.bfloat16, torch.float16)
pytestmark = pytest.mark.skipif(bool(_product.why_not()), reason="; ".join(_product.why_not()))


def random_product(num_rows, out_size, in_size, dtype):
    """x, weight, bias on the GPU; x is a view whose rows are further apart than they are long."""
    torch.manual_seed(num_rows)
    x = torch.randn(num_rows, in_size + 64, device="cuda").to(dtype)[:, :in_size]
    weight = (torch.randn(out_size, in_size, device="cuda") * in_size**-0.5).to(dtype)
    return x, weight, torch.randn(out_size, device="cuda").to(dtype)


def cases(table):
    """(rows, outputs, inputs) that make use of each entry, the fewest rows of its range among them."""
    least = 2
    for most in sorted(table):
        for size in table[most]:
            yield from ((rows, *size) for rows in (least, (least + most) // 2 | 1, most))
        least = most + 1


@pytest.mark.parametrize("name", ["linear", "linear_silu_mul", "linear_greedy"])
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float32), ids=str)
def test_own_inputs(name, dtype):
    spec = specs()[name]
    for index, inputs in enumerate(op_parity.cases(spec, dtype, seed=11)):
        errors = op_parity.relative_errors(spec, CUDA[name].run, inputs, "cuda")
        assert max(errors) <= spec.tolerance[dtype].relative, f"case {index}: {errors}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", list(cases(_product_tiles.PLAIN)), ids=str)
def test_plain_products(size, dtype):
    assert _product_tiles.choose(*size, False)
    x, weight, bias = random_product(*size, dtype)
    for b in (None, bias):
        with op_parity.poisoned_memory():
            got = linear.run(x, weight, b)
        expected = x.double() @ weight.double().T + (0 if b is None else b.double())
        assert op_parity.error(got, expected.cpu()) < specs()["linear"].tolerance[dtype].relative / 2
        assert torch.equal(got, linear.run(x, weight, b)), "the same sums in the same order"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", list(cases(_product_tiles.GATED)), ids=str)
def test_gated_products(size, dtype):
    assert _product_tiles.choose(*size, True)
    x, weight, bias = random_product(*size, dtype)
    for b in (None, bias):
        with op_parity.poisoned_memory():
            got = linear_silu_mul.run(x, weight, b)
        products = x.double() @ weight.double().T + (0 if b is None else b.double())
        gate, up = products.chunk(2, dim=-1)
        assert op_parity.error(got, (gate * torch.sigmoid(gate) * up).cpu()) < TOLERANCES[dtype].relative


def joined_cases():
    """(tile of the product before a norm, its sizes, tile of the one after it, its sizes, whether that is gated, most rows)."""
    for most, sizes in _product_tiles.JOINED.items():
        for (qkv, hidden, inner), tiles in sizes.items():
            if tiles.out:
                yield tiles.out, (hidden, hidden), tiles.gate_up, (2 * inner, hidden), True, most
            if tiles.down:
                yield tiles.down, (hidden, inner), tiles.qkv, (qkv, hidden), False, most


@pytest.mark.parametrize("before, size, after, next_size, gated, most", list(joined_cases()), ids=str)
def test_a_norm_in_two_halves(before, size, after, next_size, gated, most):
    for num_rows in (most, most - 1, max(1, most // 2 - 13)):
        x, weight, _ = random_product(num_rows, *size, torch.bfloat16)
        _, next_weight, bias = random_product(num_rows, *next_size, torch.bfloat16)
        residual = (torch.randn(num_rows, size[0], device="cuda") * 3).bfloat16()
        gains = (torch.rand(size[0], device="cuda") + 0.5).bfloat16()
        exact = residual.double() + x.double() @ weight.double().T
        with op_parity.poisoned_memory():
            half = _product.add(x, weight, before, residual, gains, 1e-5)
            got = _product.multiply(half, next_weight, bias, after, gated)
        assert op_parity.error(residual, exact.cpu()) < 3e-3
        assert torch.allclose(half.squares.sum(0), residual.float().pow(2).sum(1), rtol=1e-4)
        normed = rms_norm(residual.double(), gains.double(), 1e-5)
        expected = normed @ next_weight.double().T + bias.double()
        if gated:
            gate, up = expected.chunk(2, dim=-1)
            expected = gate * torch.sigmoid(gate) * up
        assert op_parity.error(got, expected.cpu()) < TOLERANCES[torch.bfloat16].relative
        assert torch.equal(got, _product.multiply(half, next_weight, bias, after, gated)), (
            "the same sums in the same order"
        )


@pytest.mark.parametrize("num_rows", [2, 64, 65, 128, 200, 256, 257, 512, 1000, 1024])
def test_the_likeliest_output_is_the_largest_that_a_product_would_store(num_rows):
    x, weight, _ = random_product(num_rows, 40_008, 896, torch.bfloat16)
    assert _product_tiles.choose_greedy(num_rows, *weight.shape)
    ids = linear_greedy.run(x, weight)
    logits = x.double() @ weight.double().T
    # Logits of 4 to 8 are multiples of 2 ** -5 in bfloat16: of those that round alike the first is taken.
    assert (logits.max(-1).values - logits.gather(1, ids[:, None])[:, 0]).max() <= 2**-5 + 1e-3
    assert (ids == logits.argmax(-1)).float().mean() > 0.7


def test_of_equal_outputs_the_first_is_taken():
    x, weight, _ = random_product(100, 33_000, 128, torch.bfloat16)
    weight[:] = weight[:1]
    assert not linear_greedy.run(x, weight).any()
