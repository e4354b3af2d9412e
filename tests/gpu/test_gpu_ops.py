"""Every Triton operator on the GPU against its reference in float64, on the operator's own inputs and on larger and odd shapes."""

import op_parity
import pytest
import torch

from quire.ops.contract import randn
from quire.ops.registry import implementations, resolve, specs

TRITON = implementations("triton")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GENERATOR_SEED = 11

LARGE_ATTENTION: list[op_parity.AttentionCase] = [
    # (query length, sequence length) a row, query heads, key heads, head size, block size, window
    ([(1, 1 + 37 * i) for i in range(64)], 28, 4, 128, 16, 0),
    ([(1, 1000 + i) for i in range(256)], 14, 2, 64, 16, 0),
    ([(1, 20_000), (1, 9000), (1, 8192), (1, 8193)], 12, 2, 128, 16, 0),
    ([(1, 5000), (1, 4097), (1, 4096), (1, 100)], 32, 8, 128, 16, 4096),
    ([(2048, 2048), (1, 700), (512, 3000), (1, 1), (17, 17)], 28, 4, 128, 16, 0),
    ([(1500, 1500), (700, 4000), (1, 4500)], 32, 8, 128, 16, 1000),
    ([(333, 333), (1, 50), (129, 500)], 32, 32, 80, 16, 0),
    ([(64, 64)] * 40, 14, 2, 64, 32, 0),
    ([(100, 900), (1, 900)], 16, 1, 256, 16, 0),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(TRITON))
def test_own_inputs(name, dtype):
    spec = specs()[name]
    for index, inputs in enumerate(op_parity.cases(spec, dtype, GENERATOR_SEED)):
        errors = op_parity.relative_errors(spec, TRITON[name].run, inputs, "cuda")
        assert max(errors) <= spec.tolerance[dtype].relative, f"case {index}: {errors}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", op_parity.SMALL_ATTENTION + LARGE_ATTENTION, ids=lambda c: f"{len(c[0])}rows-{c[1:]}")
def test_attention_against_dense_softmax(case, dtype):
    inputs = op_parity.attention_inputs(case, dtype)
    inputs = {name: op_parity.to_device(value, "cuda") for name, value in inputs.items()}
    expected = op_parity.dense_attention(**inputs)
    with op_parity.poisoned_memory():
        got = TRITON["paged_attention"].run(**inputs)
    bound = specs()["paged_attention"].tolerance[dtype].relative
    assert op_parity.error(got, expected.cpu()) <= bound


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("rows, hidden", [(1, 896), (1, 3584), (4097, 3584), (256, 8192), (3, 12_289)])
def test_norms_on_model_sizes(rows, hidden, dtype):
    generator = torch.Generator().manual_seed(rows)
    cpu = torch.device("cpu")
    x, residual = (randn(generator, rows, hidden, dtype=dtype, device=cpu) for _ in range(2))
    weight, bias = (randn(generator, hidden, dtype=dtype, device=cpu) for _ in range(2))
    inputs = {
        "rms_norm": {"x": x, "weight": weight, "eps": 1e-6},
        "add_rms_norm": {"x": x, "residual": residual, "weight": weight, "eps": 1e-6},
        "layer_norm": {"x": x, "weight": weight, "bias": bias, "eps": 1e-5},
        "silu_mul": {"x": torch.cat((x, residual), dim=-1)},
    }
    for name, arguments in inputs.items():
        spec = specs()[name]
        errors = op_parity.relative_errors(spec, TRITON[name].run, arguments, "cuda")
        assert max(errors) <= spec.tolerance[dtype].relative, f"{name}: {errors}"


@pytest.mark.parametrize("out_size, in_size", [(1152, 896), (9728, 896), (3584, 18_944), (152_064, 3584), (100, 257)])
def test_products_of_one_row(out_size, in_size):
    generator = torch.Generator(device="cuda").manual_seed(out_size)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").bfloat16()

    x, weight, bias = draw(1, in_size), draw(out_size, in_size) * in_size**-0.5, draw(out_size)
    for some_bias in (bias, None):
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if some_bias is None else bias.double())
        with op_parity.poisoned_memory():
            got = TRITON["linear"].run(x, weight, some_bias)
        assert op_parity.error(got, expected.cpu()) <= specs()["linear"].tolerance[torch.bfloat16].relative


def test_row_results_do_not_depend_on_batch_mates():
    lens = [(1, 700), (40, 900), (1, 64), (5, 5)]
    inputs = op_parity.attention_inputs((lens, 28, 4, 128, 16, 0), torch.bfloat16)
    inputs = {name: op_parity.to_device(value, "cuda") for name, value in inputs.items()}
    run, fwd = TRITON["paged_attention"].run, inputs["fwd"]
    together = run(**inputs)
    starts = fwd.query_start_loc.tolist()
    for row, (queries, seq_len) in enumerate(lens):
        alone = op_parity.only_row(fwd, row, queries, seq_len)
        rows = slice(starts[row], starts[row + 1])
        assert torch.equal(run(inputs["q"][rows], inputs["kv"], alone, inputs["scale"]), together[rows])


def test_repeated_runs_are_bit_identical():
    for name, module in TRITON.items():
        spec = specs()[name]
        for inputs in op_parity.cases(spec, torch.bfloat16, GENERATOR_SEED):
            first, second = (
                op_parity.outputs(spec, module.run, {k: op_parity.to_device(v, "cuda") for k, v in inputs.items()})
                for _ in range(2)
            )
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


def test_cuda_resolves_to_triton():
    _, choices = resolve(("triton", "torch"))
    assert {c.op for c in choices if c.backend == "triton"} == set(TRITON)
