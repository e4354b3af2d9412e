"""The Hopper kernel of decoding rows' attention against one dense softmax in float64: odd lengths, NaN wherever nothing may be read."""

from dataclasses import replace

import op_parity
import pytest
import torch
from attention_inputs import assert_attended, assert_written, decoding

from quire.backends.cuda import _split_attention, paged_attention, rotary_attention
from quire.ops.paged_attention import _random_batch
from quire.ops.registry import specs
from quire.ops.rotary_write_kv import rotary_write_kv

pytestmark = pytest.mark.skipif(bool(rotary_attention.why_not()), reason="made for Hopper GPUs")

DTYPES = (torch.bfloat16, torch.float16)
LENS = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 0, 255, 256, 257, 300, 511, 512, 513, 1000, 1025, 4097, 0]
CASES = [
    # lengths, query heads, key heads, head size, block size
    (LENS, 14, 2, 64, 16),
    (LENS, 28, 4, 128, 16),
    (LENS, 12, 2, 128, 32),
    (LENS, 8, 8, 64, 64),
    (LENS, 8, 1, 128, 16),
    ([40], 3, 1, 64, 16),
    ([1000, 0, 8200, 20_000], 12, 2, 128, 16),
    ([1 + 37 * i for i in range(64)], 28, 4, 128, 16),
    ([128 + 7 * i % 150 for i in range(256)], 14, 2, 64, 16),
    ([i * 13 % 600 for i in range(300)], 14, 2, 64, 16),
    ([i * 17 % 530 for i in range(150)], 28, 4, 128, 16),
    ([i * 7 % 90 for i in range(1024)], 4, 2, 64, 16),
]


def ids(case):
    return f"{len(case[0])}rows-{case[1:]}"


@pytest.fixture(autouse=True)
def _counters_rest_at_zero(monkeypatch):
    made, seen = _split_attention._arrivals, []

    def arrivals(device, size):
        seen.append(made(device, size))
        return seen[-1]

    monkeypatch.setattr(_split_attention, "_arrivals", arrivals)
    yield
    assert not any(counters.any() for counters in seen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_against_dense_softmax(case, dtype):
    inputs, plain = decoding(case, dtype, "cuda")
    assert _split_attention.fits(inputs["q"], inputs["kv"], 0)
    before = inputs["kv"].clone()
    with op_parity.poisoned_memory():
        got = rotary_attention.run(**inputs)
    assert_attended(got, plain)
    assert_written(before, inputs, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:5], ids=ids)
def test_keys_that_lie_in_the_cache(case, dtype):
    _, plain = decoding(case, dtype, "cuda")
    with op_parity.poisoned_memory():
        got = paged_attention.run(**plain)
    assert_attended(got, plain)


def test_decoding_rows_among_prompts():
    lens = [(1, 700), (30, 30), (1, 5), (200, 700), (0, 0), (1, 1)]
    inputs = op_parity.attention_inputs((lens, 14, 2, 64, 16, 0), torch.bfloat16)
    inputs = {name: op_parity.to_device(value, "cuda") for name, value in inputs.items()}
    with op_parity.poisoned_memory():
        got = paged_attention.run(**inputs)
    del inputs["window"]
    assert_attended(got, inputs)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=ids)
def test_a_row_does_not_depend_on_its_batch_mates(case):
    inputs, _ = decoding(case, torch.bfloat16, "cuda")
    fwd, order = inputs["fwd"], torch.randperm(len(case[0]), device="cuda")
    together = rotary_attention.run(**{**inputs, "kv": inputs["kv"].clone()})
    shuffled = replace(
        fwd, seq_lens=fwd.seq_lens[order], block_tables=fwd.block_tables[order], slot_mapping=fwd.slot_mapping[order]
    )
    shuffled.seq_lens[::3] = 0
    parts = {name: inputs[name][order] for name in "qkv"}
    other = rotary_attention.run(**{**inputs, **parts, "fwd": shuffled})
    stays = shuffled.seq_lens > 0
    assert torch.equal(other[stays], together[order][stays])


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[8]], ids=ids)
def test_captured_and_replayed_with_other_lengths(case):
    inputs, second = (decoding(case, torch.bfloat16, "cuda", seed)[0] for seed in (5, 6))
    fwd, kv = inputs["fwd"], inputs["kv"]
    layers = [(kv, inputs["q"], inputs["k"], inputs["v"]), (-kv, second["q"], second["k"], second["v"])]

    def step():
        mine = replace(fwd)
        return [
            rotary_attention.run(q, k, v, inputs["cos_sin"], kv, mine, inputs["scale"]) for kv, q, k, v in layers * 2
        ]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = step()
    for turn in range(4):
        for out in outs:
            out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        stays = fwd.seq_lens > 0
        for out, (kv, q, k, v) in zip(outs, layers * 2, strict=True):
            expected_kv = kv.clone()
            turned, _ = rotary_write_kv(
                q.clone(), k.clone(), v, fwd.positions, inputs["cos_sin"], expected_kv, fwd.slot_mapping
            )
            assert_attended(out, {"q": turned, "kv": expected_kv, "fwd": fwd, "scale": inputs["scale"]})
        order = torch.randperm(len(stays), device="cuda")
        for name in ("seq_lens", "block_tables", "slot_mapping", "positions"):
            getattr(fwd, name).copy_(getattr(fwd, name)[order])
        fwd.seq_lens[turn::5] = 0
        fwd.slot_mapping[turn::5] = -1


def test_plan_lists_every_key_once_and_long_items_first():
    lens = [i * 37 % 3000 for i in range(1100)]
    fwd, _ = _random_batch(torch.Generator(), [(1, n) for n in lens], 16, torch.device("cuda"))
    plan, is_new = _split_attention._plan(fwd)
    assert is_new and _split_attention._plan(fwd) == (plan, False)
    count = int(plan.items[0])
    items = plan.items[4 : 4 + 8 * count].view(-1, 8).tolist()
    size = plan.split_keys
    expected = [
        [row, row, first, min(first + size, n), n, i, max(1, -(-n // size)), 0]
        for row, n in enumerate(lens)
        for i, first in enumerate(range(0, max(1, n), size))
    ]
    assert sorted(items) == sorted(expected)
    keys = [end - begin for _, _, begin, end, *_ in items]
    assert all(after - before < size / 32 for before, after in zip(keys, keys[1:]))


def test_what_the_kernel_does_not_take():
    spec = specs()["rotary_attention"]
    for dtype in (torch.bfloat16, torch.float16):
        for inputs in op_parity.cases(spec, dtype, 11):
            assert (
                max(op_parity.relative_errors(spec, rotary_attention.run, inputs, "cuda"))
                <= spec.tolerance[dtype].relative
            )
