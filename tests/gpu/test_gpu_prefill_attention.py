"""The Hopper kernel of prompts' attention against one dense softmax in float64: odd lengths, contexts, padding, what is left unwritten."""

from dataclasses import replace

import op_parity
import pytest
import torch

from quire.backends.cuda import _prefill_attention, paged_attention
from quire.ops.registry import specs

pytestmark = pytest.mark.skipif(bool(paged_attention.why_not()), reason="made for Hopper GPUs")

DTYPES = (torch.bfloat16, torch.float16)
CASES: list[op_parity.AttentionCase] = [
    # (query length, sequence length) a row, query heads, key heads, head size, block size, window
    ([(2, 2)], 1, 1, 64, 16, 0),
    ([(128, 128)], 2, 1, 128, 16, 0),
    ([(129, 129), (127, 127), (128, 256)], 14, 2, 64, 16, 0),
    ([(2048, 2048), (1, 700), (512, 3000), (1, 1), (17, 17)], 28, 4, 128, 16, 0),
    ([(333, 333), (1, 50), (129, 500), (700, 4001)], 12, 2, 128, 16, 0),
    ([(1500, 1503), (0, 0), (12, 12)], 14, 2, 64, 8, 0),
    ([(64, 64)] * 40, 14, 2, 64, 32, 0),
    ([(5, 1000), (200, 300)], 8, 8, 64, 64, 0),
    ([(200, 300), (7, 129)], 16, 2, 128, 256, 0),
    ([(100, 900), (30, 30)], 4, 1, 128, 48, 0),
    ([(i % 67 + 2, 5 * i + 70) for i in range(150)], 4, 2, 64, 16, 0),
    ([(9000, 9100)], 14, 2, 64, 16, 0),  # the larger tiles
]


def inputs_of(case, dtype):
    inputs = op_parity.attention_inputs(case, dtype)
    return {name: op_parity.to_device(value, "cuda") for name, value in inputs.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{len(c[0])}rows-{c[1:]}")
def test_against_dense_softmax(case, dtype):
    inputs = inputs_of(case, dtype)
    assert _prefill_attention.fits(inputs["q"], inputs["kv"], 0)
    with op_parity.poisoned_memory():
        got = paged_attention.run(**inputs)
    expected = op_parity.dense_attention(**inputs)
    assert op_parity.error(got, expected.cpu()) <= specs()["paged_attention"].tolerance[dtype].relative
    assert not _prefill_attention._counters(got.device).any()


@pytest.mark.parametrize("case", op_parity.SMALL_ATTENTION, ids=lambda c: f"{len(c[0])}rows-{c[1:]}")
def test_what_the_kernel_does_not_take(case):
    inputs = inputs_of(case, torch.bfloat16)
    got = paged_attention.run(**inputs)
    expected = op_parity.dense_attention(**inputs).nan_to_num()
    assert op_parity.error(got, expected.cpu()) <= specs()["paged_attention"].tolerance[torch.bfloat16].relative


def test_rows_of_no_sequence_are_zero():
    inputs = inputs_of(([(200, 200), (0, 0), (70, 100)], 14, 2, 64, 16, 0), torch.bfloat16)
    fwd, rows = inputs["fwd"], 500
    q = torch.randn(rows, 14, 64, device="cuda", dtype=torch.bfloat16)
    padded = replace(
        fwd,
        input_ids=torch.zeros(rows, dtype=torch.int64, device="cuda"),
        # Padding may belong to a sequence of no length, or to none.
        query_start_loc=torch.tensor([0, 200, 270, 470], dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor([200, 100, 0], dtype=torch.int32, device="cuda"),
        block_tables=fwd.block_tables[[0, 2, 1]].contiguous(),
    )
    with op_parity.poisoned_memory():
        got = paged_attention.run(q, inputs["kv"], padded, 0.125)
    assert got[:270].isfinite().all() and got[:270].abs().sum(dim=(1, 2)).all()
    assert not got[270:].any()


@pytest.mark.parametrize("head_size, heads, kv_heads", [(64, 14, 2), (128, 12, 2)])
def test_a_token_does_not_depend_on_its_chunk_or_its_batch_mates(head_size, heads, kv_heads):
    inputs = inputs_of(([(9000, 9000), (300, 5000)], heads, kv_heads, head_size, 16, 0), torch.bfloat16)
    q, kv, fwd, scale = inputs["q"], inputs["kv"], inputs["fwd"], inputs["scale"]
    together = paged_attention.run(q, kv, fwd, scale)
    for begin, end in ((0, 4000), (4000, 4077), (4077, 9000)):
        row = op_parity.only_row(fwd, 0, end - begin, end)
        row = replace(row, seq_lens=torch.tensor([end], dtype=torch.int32, device="cuda"))
        part = paged_attention.run(q[begin:end], kv, row, scale)
        assert torch.equal(part, together[begin:end])
    assert torch.equal(paged_attention.run(q[9000:], kv, op_parity.only_row(fwd, 1, 300, 5000), scale), together[9000:])


def test_captured_and_replayed():
    inputs = inputs_of(([(300, 300), (1, 40), (90, 1000)], 14, 2, 64, 16, 0), torch.bfloat16)
    expected = paged_attention.run(**inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention.run(**inputs)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)
