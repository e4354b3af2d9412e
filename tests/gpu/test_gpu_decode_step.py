"""The persistent decoding kernel against the layers' operators, in float64 on the same weights."""

from typing import Any

import op_parity
import pytest
import torch
from torch import Tensor

from quire.backends.cuda import decode_step as module
from quire.ops.decode_step import SPEC, DecoderTensors, decode_step, random_decoder, random_step
from quire.ops.forward_batch import ForwardBatch

BOUND = SPEC.tolerance[torch.bfloat16].relative
SIZES: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 14, "kv_heads": 2, "head_dim": 64, "hidden": 896, "inner": 4864, "vocab": 5003},
    "wide": {"heads": 28, "kv_heads": 4, "head_dim": 128, "hidden": 3584, "inner": 18_944, "vocab": 2001},
    "one key head each": {"heads": 8, "kv_heads": 8, "head_dim": 64, "hidden": 512, "inner": 1408, "vocab": 700},
    "sixteen to a key head": {"heads": 16, "kv_heads": 1, "head_dim": 128, "hidden": 1536, "inner": 4224, "vocab": 999},
}
LENS = (1, 2, 16, 17, 63, 64, 65, 66, 128, 129, 500, 1025, 2500)


def decoder(name: str, **changes: Any) -> DecoderTensors:
    options = {"bias": True, "norms": False, "window": 0, "num_positions": 3000, **SIZES[name], **changes}
    generator = torch.Generator().manual_seed(5)
    return random_decoder(generator, torch.bfloat16, torch.device("cuda"), **options)


def step(net: DecoderTensors, lens: list[int], seed: int = 0, block_size: int = 16) -> ForwardBatch:
    return random_step(torch.Generator().manual_seed(seed), net, lens, block_size)


def parted(net: DecoderTensors, fwd: ForwardBatch) -> tuple[float, float]:
    """Relative errors of the logits of rows that take part, and of the caches; infinite when an element is NaN that should not be."""
    exact = op_parity.to_device(fwd, "cuda", torch.float64)
    expected = decode_step(op_parity.to_device(net, "cuda", torch.float64), exact)
    before = [kv.clone() for kv in fwd.kv_caches]
    with op_parity.poisoned_memory():
        got = module.run(net, fwd)
    assert got is not None and expected is not None and got.isfinite().all()
    live = fwd.seq_lens > 0
    for ours, old in zip(fwd.kv_caches, before, strict=True):
        untouched = torch.ones(ours.shape[1:3].numel(), dtype=torch.bool, device="cuda")
        untouched[fwd.slot_mapping[live]] = False
        assert _bits(ours.flatten(1, 2)[:, untouched]).equal(_bits(old.flatten(1, 2)[:, untouched]))
    if not live.any():
        return 0.0, 0.0
    slots = fwd.slot_mapping[live]
    written = [
        torch.stack([kv.flatten(1, 2)[:, slots] for kv in caches]) for caches in (fwd.kv_caches, exact.kv_caches)
    ]
    return op_parity.error(got[live], expected[live].cpu()), op_parity.error(written[0], written[1].cpu())


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int16)


@pytest.mark.parametrize("index", range(3))
def test_own_inputs(index, monkeypatch):
    inputs = list(SPEC.make_inputs(torch.Generator().manual_seed(3), torch.bfloat16, torch.device("cuda")))[index]
    if inputs["fwd"].num_sequences not in module.ROWS:
        pytest.skip(f"{inputs['fwd'].num_sequences} rows are left to the layers")
    assert max(parted(**inputs)) <= BOUND


@pytest.mark.parametrize("rows", module.ROWS)
@pytest.mark.parametrize("name", SIZES)
def test_any_length(name, rows):
    net = decoder(name)
    for i in range(0, len(LENS), rows):
        lens = [LENS[(i + j) % len(LENS)] for j in range(rows)]
        fwd = step(net, lens, i)
        if module.refusals(net, fwd):
            assert name == "wide" and rows > 2 and module.run(net, fwd) is None
            continue
        assert max(parted(net, fwd)) <= BOUND, lens


@pytest.mark.parametrize("rows", module.ROWS)
@pytest.mark.parametrize("changes", [{"window": 50}, {"bias": False, "norms": True}, {"num_layers": 40}], ids=str)
def test_kinds_of_layers(changes, rows):
    net = decoder("one key head each", **changes)
    bound = BOUND * (3 if "num_layers" in changes else 1)
    for seed, length in enumerate((1, 49, 50, 51, 333)):
        assert max(parted(net, step(net, [length + i for i in range(rows)], seed, 32))) <= bound, length


@pytest.mark.parametrize("rows", module.ROWS)
def test_resting_rows_write_nothing_and_disturb_nobody(rows):
    net = decoder("grouped")
    for lens in ([0] * rows, [0] * (rows - 1) + [300], [77] + [0] * (rows - 1)):
        assert max(parted(net, step(net, lens))) <= BOUND, lens


@pytest.mark.parametrize("rows", [rows for rows in module.ROWS if rows > 1])
def test_a_row_that_has_failed_does_not_touch_the_others(rows):
    net = decoder("grouped")
    fwd = step(net, [70 + 50 * i for i in range(rows)])
    for kv in fwd.kv_caches:
        kv[:, fwd.block_tables[1, : fwd.seq_lens[1] // 16].long()] = torch.nan
    exact = op_parity.to_device(fwd, "cuda", torch.float64)
    expected = decode_step(op_parity.to_device(net, "cuda", torch.float64), exact)
    for _ in range(3):
        got = module.run(net, fwd)
    others = torch.arange(rows) != 1
    assert got is not None and expected is not None and not got[1].isfinite().any()
    assert op_parity.error(got[others], expected[others].cpu()) <= BOUND


def move(fwd: ForwardBatch, length: int) -> None:
    """Lets all rows end at `length`, in place."""
    place = length - 1
    fwd.seq_lens.fill_(length)
    fwd.slot_mapping.copy_(fwd.block_tables[:, place // 16] * 16 + place % 16)


@pytest.mark.parametrize("rows", module.ROWS)
def test_replays_of_a_graph_are_equal_and_see_new_inputs(rows):
    net = decoder("grouped")
    fwd = step(net, [700] * rows)
    move(fwd, 40)
    first = module.run(net, fwd)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = module.run(net, fwd)
    for _ in range(300):  # more than there are tags
        graph.replay()
    assert first is not None and logits is not None and torch.equal(logits, first)
    fwd.input_ids.add_(1)
    move(fwd, 690)
    exact = op_parity.to_device(fwd, "cuda", torch.float64)
    graph.replay()
    expected = decode_step(op_parity.to_device(net, "cuda", torch.float64), exact)
    assert expected is not None and op_parity.error(logits, expected.cpu()) <= BOUND


def test_a_model_that_is_given_up_frees_its_memory():
    net = decoder("wide")
    module.run(net, step(net, [9]))
    torch.cuda.synchronize()
    used = torch.cuda.memory_allocated()
    del net
    assert torch.cuda.memory_allocated() < used - 900 * 10**6
