"""Decoding steps of many rows, with norms joined to products, against the layers' operators in float64 on the same weights."""

import op_parity
import pytest
import torch

from quire.backends.cuda import decode_layers as module
from quire.backends.cuda._product_tiles import JOINED, LEAST_JOINED
from quire.ops.decode_layers import SPEC, decode_layers
from quire.ops.decode_step import DecoderTensors, random_decoder, random_step

BOUND = SPEC.tolerance[torch.bfloat16].relative
pytestmark = pytest.mark.skipif(bool(module.why_not()), reason="; ".join(module.why_not()))
HEADS = {1152: (14, 2, 64), 2048: (12, 2, 128)}  # outputs of qkv -> query heads, key heads, size
# Larger decoders take long to draw; their products are in test_gpu_products.py.
CASES = [(most, sizes) for most in sorted(JOINED) for sizes in JOINED[most] if sizes[0] in HEADS]


def decoder(sizes: tuple[int, int, int], **changes: object) -> DecoderTensors:
    heads, kv_heads, head_dim = HEADS[sizes[0]]
    options = {
        "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "hidden": sizes[1], "inner": sizes[2], "vocab": 500, "bias": True,
        "norms": False, "window": 0, "num_positions": 400, **changes,
    }  # fmt: skip
    return random_decoder(torch.Generator().manual_seed(5), torch.bfloat16, torch.device("cuda"), **options)  # type: ignore[arg-type]


def largest_error(net: DecoderTensors, num_rows: int) -> float:
    """Of hidden states of rows that take part, and of keys and values that they write."""
    lens = [(0, 1, 17, 64, 65, 130, 3)[i % 7] + i % 5 * (i % 7 > 0) for i in range(num_rows)]
    fwd = random_step(torch.Generator().manual_seed(num_rows), net, lens, 16)
    exact = op_parity.to_device(fwd, "cuda", torch.float64)
    expected = decode_layers(op_parity.to_device(net, "cuda", torch.float64), exact)
    with op_parity.poisoned_memory():
        got = module.run(net, fwd)
    assert got is not None and expected is not None and got.isfinite().all()
    live = fwd.seq_lens > 0
    errors = [op_parity.error(got[live], expected[live].cpu())]
    for ours, theirs in zip(fwd.kv_caches, exact.kv_caches, strict=True):
        slots = fwd.slot_mapping[live]
        errors.append(op_parity.error(ours.flatten(1, 2)[:, slots], theirs.flatten(1, 2)[:, slots].cpu()))
    return max(errors)


@pytest.mark.parametrize("most, sizes", CASES, ids=str)
def test_hidden_states(most, sizes):
    net = decoder(sizes)
    least = max((rows for rows in JOINED if rows < most), default=LEAST_JOINED - 1) + 1
    for num_rows in {least, (least + most) // 2 | 1, most}:
        assert largest_error(net, num_rows) <= BOUND, num_rows


@pytest.mark.parametrize("changes", [{"window": 50}, {"bias": False, "norms": True}, {"num_layers": 1}], ids=str)
def test_kinds_of_layers(changes):
    most, sizes = CASES[0]
    assert largest_error(decoder(sizes, **changes), most) <= BOUND


def test_the_same_step_again_gives_the_same_bits():
    most, sizes = CASES[-1]
    net = decoder(sizes)
    fwd = random_step(torch.Generator().manual_seed(1), net, [40] * most, 16)
    first = module.run(net, fwd)
    assert first is not None and first.equal(module.run(net, fwd))


def test_what_it_is_not_made_for_is_left_to_the_layers():
    most, sizes = CASES[0]
    net = decoder(sizes)
    generator = torch.Generator().manual_seed(1)
    assert module.run(net, random_step(generator, net, [5] * (LEAST_JOINED - 1), 16)) is None
    assert module.run(net, random_step(generator, net, [5] * (max(JOINED) + 1), 16)) is None
    half = op_parity.to_device(net, "cuda", torch.float16)
    assert module.run(half, random_step(generator, half, [5] * most, 16)) is None
