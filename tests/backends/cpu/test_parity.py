"""Every operator of the CPU backend against its reference in float64, for each instruction set, dtype and odd shape."""

import copy
import dataclasses

import pytest
import torch
from op_parity import (
    SMALL_ATTENTION,
    AttentionCase,
    attention_inputs,
    cases,
    dense_attention,
    error,
    outputs,
    relative_errors,
)

from quire.backends.cpu import linear as native_linear
from quire.ops import registry

SPECS = registry.specs()
MODULES = registry.implementations("cpu")
DTYPES = (torch.float32, torch.bfloat16)


def test_a_forward_pass_needs_no_reference() -> None:
    """Every operator of a model's forward pass has a CPU kernel; those of captured steps need none."""
    forward = {"linear", "embedding", "rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "write_kv"}
    assert forward | {"rotary_write_kv", "paged_attention", "greedy"} <= set(MODULES) <= set(SPECS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", sorted(MODULES))
def test_matches_the_reference(op: str, dtype: torch.dtype, isa: str) -> None:
    spec = SPECS[op]
    for inputs in cases(spec, dtype, seed=20):
        errors = relative_errors(spec, MODULES[op].run, inputs, "cpu")
        assert errors and max(errors) <= spec.tolerance[dtype].relative


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL_ATTENTION, ids=str)
def test_attention_against_one_dense_softmax(case: AttentionCase, dtype: torch.dtype, isa: str) -> None:
    inputs = attention_inputs(case, dtype)
    found = error(MODULES["paged_attention"].run(**inputs), dense_attention(**inputs).nan_to_num())
    assert found <= SPECS["paged_attention"].tolerance[dtype].relative


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (3, 31, 5), (4, 33, 6), (5, 2048, 13), (9, 2049, 25), (70, 4097, 19), (33, 5000, 97), (130, 96, 100)],
)
def test_linear_tails_and_strides(m: int, k: int, n: int, dtype: torch.dtype, isa: str, two_threads: None) -> None:
    generator = torch.Generator().manual_seed(m * k)
    x = torch.randn(m, k + 3, generator=generator).to(dtype)[:, :k]  # a row stride that is no multiple of anything
    weight = (torch.randn(n, k, generator=generator) / k**0.5).to(dtype)
    bias = torch.randn(n, generator=generator).to(dtype)
    bound = SPECS["linear"].tolerance[dtype].relative
    for b in (None, bias):
        expected = x.double() @ weight.double().T + (0 if b is None else b.double())
        assert error(native_linear.run(x, weight, b), expected) <= bound


def test_linear_of_nothing() -> None:
    weight = torch.ones(3, 4)
    assert native_linear.run(torch.ones(0, 4), weight).shape == (0, 3)
    assert torch.equal(
        native_linear.run(torch.ones(2, 0), torch.ones(3, 0), torch.arange(3.0)), torch.arange(3.0).repeat(2, 1)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 7, 16, 80, 96, 128, 200, 256])
def test_attention_head_sizes(head_dim: int, dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    case = list(cases(SPECS["paged_attention"], dtype, seed=1))[2]
    rows, blocks, block_size = case["q"].shape[0], *case["kv"].shape[1:3]
    q = torch.randn(rows, 6, head_dim, generator=generator).to(dtype)
    kv = torch.randn(2, blocks, block_size, 2, head_dim, generator=generator).to(dtype)
    scale = head_dim**-0.5
    expected = SPECS["paged_attention"].reference(q.double(), kv.double(), case["fwd"], scale, 0)
    found = MODULES["paged_attention"].run(q, kv, case["fwd"], scale, 0)
    assert error(found, expected) <= SPECS["paged_attention"].tolerance[dtype].relative


def test_attention_reads_no_key_outside_a_token_s_range(isa: str) -> None:
    """NaN in every slot that a token may not see (later tokens, before the window, free blocks) changes nothing."""
    for case in cases(SPECS["paged_attention"], torch.float32, seed=5):
        fwd, kv, window = case["fwd"], case["kv"], case["window"]
        expected = MODULES["paged_attention"].run(**case)
        for b, (start, end) in enumerate(
            zip(fwd.query_start_loc[:-1].tolist(), fwd.query_start_loc[1:].tolist(), strict=True)
        ):
            for t in range(start, end):
                position = int(fwd.seq_lens[b]) - (end - t)
                low = max(0, position + 1 - window) if window else 0
                slots = fwd.block_tables[b].repeat_interleave(kv.shape[2]) * kv.shape[2]
                slots = (slots + torch.arange(len(slots)) % kv.shape[2])[low : position + 1].long()
                poisoned = torch.full_like(kv, float("nan")).flatten(1, 2)
                poisoned[:, slots] = kv.flatten(1, 2)[:, slots]
                found = MODULES["paged_attention"].run(case["q"], poisoned.view_as(kv), fwd, case["scale"], window)
                assert torch.equal(found[t], expected[t])


def test_nan_is_not_hidden(isa: str) -> None:
    """A NaN in one row's input is in that row's output and in no other's, so that the engine can find whom it struck."""
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    x[2, 17] = float("nan")
    weight = torch.ones(64)
    results = {
        "linear": MODULES["linear"].run(x, torch.ones(8, 64)),
        "rms_norm": MODULES["rms_norm"].run(x, weight, 1e-6),
        "layer_norm": MODULES["layer_norm"].run(x, weight, weight, 1e-6),
        "silu_mul": MODULES["silu_mul"].run(x),
    }
    case = next(cases(SPECS["paged_attention"], torch.float32, seed=1))
    case["q"][0, 1, 3] = float("nan")
    attended = MODULES["paged_attention"].run(**case)[0].isnan().all(-1)
    assert attended.tolist() == [False, True, False, False]
    for name, out in results.items():
        assert out.isnan().any(-1).tolist() == [row == 2 for row in range(5)], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_takes_the_first_of_the_largest(dtype: torch.dtype, isa: str) -> None:
    logits = torch.randn(40, 3001, generator=torch.Generator().manual_seed(6)).to(dtype)
    for row in range(40):
        logits[row, [row * 75, 3000 - row]] = 50.0 if row % 2 else logits[row].max()
    assert MODULES["greedy"].run(logits).tolist() == logits.double().argmax(-1).tolist()
    assert MODULES["greedy"].run(logits[:, :7]).tolist() == logits[:, :7].double().argmax(-1).tolist()
    for place, bad in ((0, "nan"), (3000, "nan"), (1024, "inf"), (2999, "-inf")):
        spoilt = logits.clone()
        spoilt[5, place] = float(bad)
        found = MODULES["greedy"].run(spoilt)
        assert found[5] == -1 and found[4] == MODULES["greedy"].run(logits)[4]
    assert MODULES["greedy"].run(torch.full((2, 100), float("-inf"), dtype=dtype)).tolist() == [-1, -1]


def test_silu_at_the_ends(isa: str) -> None:
    gate = torch.tensor([-1e4, -104.0, -89.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 89.0, 1e4])
    found = MODULES["silu_mul"].run(torch.cat((gate, torch.ones(10))).unsqueeze(0))[0]
    torch.testing.assert_close(found, torch.nn.functional.silu(gate.double()).float(), rtol=2e-6, atol=1e-33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_one_packed_row(dtype: torch.dtype, isa: str) -> None:
    """q, k and v as views of one qkv row: head norms, rotary in place and the write to the cache."""
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(9, 8, 64, generator=generator).to(dtype)
    q, k, v = qkv.split((4, 2, 2), dim=1)
    weight = torch.randn(64, generator=generator).to(dtype)
    normed = MODULES["rms_norm"].run(q, weight, 1e-6)
    assert normed.is_contiguous()
    assert error(normed, SPECS["rms_norm"].reference(q, weight, 1e-6)) <= 1e-2
    angles = torch.rand(20, 16, generator=generator)
    table, positions = torch.cat((angles.cos(), angles.sin()), -1), torch.arange(9) * 2
    expected = SPECS["rotary"].reference(q.double(), k.double(), positions, table.double())
    value_before = v.clone()
    rotated = MODULES["rotary"].run(q, k, positions, table)
    for mine, theirs in zip(rotated, expected, strict=True):
        assert error(mine, theirs) <= SPECS["rotary"].tolerance[dtype].relative
    assert torch.equal(v, value_before)
    kv = torch.zeros(2, 4, 4, 2, 64, dtype=dtype)
    slots = torch.tensor([15, -1, 4, 5, 6, 7, -1, 8, 9])
    MODULES["write_kv"].run(k, v, kv, slots)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert torch.equal(kv.flatten(1, 2)[:, slot], torch.stack((k[row], v[row])))
    assert not kv.flatten(1, 2)[:, [0, 1, 2, 3, 10, 11, 12, 13, 14]].any()


@pytest.mark.parametrize(
    "op", ["greedy", "linear", "rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "rotary_write_kv", "write_kv"]
)
def test_half_precision_takes_the_reference(op: str) -> None:
    spec = SPECS[op]
    for inputs in spec.make_inputs(torch.Generator().manual_seed(2), torch.float16, torch.device("cpu")):
        again = copy.deepcopy(inputs)
        expected, found = outputs(spec, spec.reference, again), outputs(spec, MODULES[op].run, inputs)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_wide_block_tables_take_the_reference() -> None:
    case = list(
        SPECS["paged_attention"].make_inputs(torch.Generator().manual_seed(2), torch.float32, torch.device("cpu"))
    )[1]
    wide = dataclasses.replace(case["fwd"], block_tables=case["fwd"].block_tables.long())
    expected = MODULES["paged_attention"].run(**case)
    found = MODULES["paged_attention"].run(**{**case, "fwd": wide})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
