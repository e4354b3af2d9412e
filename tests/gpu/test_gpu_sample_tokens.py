"""The sampling kernels on the GPU against the operator's reference: on its own inputs, on random ones, and on a real vocabulary."""

import op_parity
import pytest
import torch
from sampling_inputs import DTYPES, compare, equal_inputs, random_inputs

from quire.backends.cuda import sample_tokens as cuda
from quire.ops.sample_tokens import SPEC, _random_counts
from quire.runner.device_sampler import make_scores

pytestmark = pytest.mark.skipif(bool(cuda.why_not()), reason="; ".join(cuda.why_not()))
VOCAB = 151_936


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_own_inputs(dtype):
    for inputs in op_parity.cases(SPEC, dtype, seed=7):
        compare(cuda.run, inputs, "cuda")


@pytest.mark.parametrize("seed", range(50))
def test_random_inputs(seed):
    compare(cuda.run, random_inputs(seed), "cuda")


def test_more_equal_groups_than_are_listed():
    compare(cuda.run, equal_inputs(2048 * 128 + 5000), "cuda")


@pytest.mark.parametrize("top_k, top_p", [(50, 0.9), (0, 0.9), (0, 1.0), (1000, 0.99)])
def test_rows_of_a_real_vocabulary(top_k, top_p):
    draw, rows, cpu = torch.Generator().manual_seed(top_k), 24, torch.device("cpu")
    controls = torch.tensor([1.0, top_k, top_p, 0.0, 1.1, 0.3, 0.3], dtype=torch.float64).unsqueeze(1).repeat(1, rows)
    spread = torch.tensor([1.0, 2.0, 4.0, 8.0]).repeat(rows // 4).unsqueeze(1)
    inputs = {
        "logits": (torch.randn(rows, VOCAB, generator=draw) * spread).bfloat16(),
        "controls": controls,
        "uniforms": torch.rand(1, rows, generator=draw, dtype=torch.float64),
        "step": torch.tensor([0]),
        **_random_counts(draw, rows, VOCAB, cpu),
        "rows": torch.arange(rows),
        "weigh_all": top_k == 0,
        "scores": make_scores(1, rows, 8, cpu),
    }
    compare(cuda.run, inputs, "cuda")
