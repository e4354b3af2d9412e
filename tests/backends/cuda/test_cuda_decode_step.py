"""What can be told of the persistent decoding kernel without a GPU: which decoders it takes, and what it is compiled for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.backends.cuda import _ahead, _nvrtc, decode_step
from quire.ops.decode_step import DecoderTensors, LayerTensors
from quire.ops.forward_batch import ForwardBatch

KV_SHAPE = (2, 4, 16)


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_step, "num_processors", lambda: 132)
    monkeypatch.setattr(decode_step, "shared_memory_bytes", lambda: 232_448)
    monkeypatch.setattr(decode_step, "_architecture", lambda: "sm_90")


def decoder(
    hidden: int = 896, inner: int = 4864, heads: int = 14, kv_heads: int = 2, head_dim: int = 64, layers: int = 24,
    dtype: torch.dtype = torch.bfloat16, vocab: int = 1000,
) -> DecoderTensors:  # fmt: skip
    def make(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    qkv = (heads + 2 * kv_heads) * head_dim
    layer = LayerTensors(
        make(qkv, hidden), make(qkv), None, None, make(hidden, heads * head_dim), make(2 * inner, hidden), make(hidden, inner),
        make(hidden), make(hidden), 0,
    )  # fmt: skip
    embedding = make(vocab, hidden)
    return DecoderTensors(
        embedding,
        (layer,) * layers,
        make(hidden),
        embedding,
        make(100, head_dim),
        heads,
        kv_heads,
        head_dim,
        1e-6,
        0.125,
    )


def step(net: DecoderTensors, rows: int) -> ForwardBatch:
    def make(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    caches = [make(*KV_SHAPE, net.num_kv_heads, net.head_dim, dtype=net.head.dtype) for _ in net.layers]
    int32 = {"dtype": torch.int32}
    return ForwardBatch(
        make(rows), make(rows), make(rows), make(rows + 1, **int32), make(rows, **int32), make(rows, 3, **int32), make(rows), 1, 48, caches
    )  # fmt: skip


def test_sizes_of_qwen2_are_taken() -> None:
    for sizes, rows in (({}, 8), ({"hidden": 1536, "inner": 8960, "heads": 12, "head_dim": 128}, 4),
                        ({"hidden": 3584, "inner": 18_944, "heads": 28, "kv_heads": 4, "head_dim": 128}, 2)):  # fmt: skip
        net = decoder(**sizes)  # type: ignore[arg-type]
        assert decode_step.refusals(net, step(net, rows)) == []


@pytest.mark.parametrize(
    "sizes, rows, reason",
    [
        ({"dtype": torch.float16}, 1, "not bfloat16"),
        ({"head_dim": 32}, 1, "head size 32"),
        ({"heads": 34, "kv_heads": 2}, 1, "17 heads"),
        ({"hidden": 900}, 1, "multiples of 64"),
        ({"hidden": 128, "heads": 2}, 1, "multiprocessors"),
        ({"inner": 18_944, "hidden": 3584}, 4, "shared memory"),
    ],
    ids=str,
)
def test_others_are_refused_with_a_reason(sizes: dict[str, Any], rows: int, reason: str) -> None:
    net = decoder(**sizes)
    fwd = step(net, rows)
    assert any(reason in found for found in decode_step.refusals(net, fwd))
    assert decode_step.run(net, fwd) is None


def test_batches_that_are_too_large_are_left_to_the_layers() -> None:
    net = decoder()
    assert decode_step.run(net, step(net, 3)) is None and decode_step.run(net, step(net, 16)) is None


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Macros of each kernel that was compiled."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(_nvrtc, "compile_kernel", lambda source, macros, architecture: found.append(dict(macros)))
    yield found


def test_going_through_steps_compiles_and_launches_nothing(compiled: list[dict[str, Any]]) -> None:
    net, jobs = decoder(layers=1), []
    with _ahead.collect(jobs.append):
        logits = decode_step.run(net, step(net, 2))
    assert logits is not None and logits.shape == (2, 1000) and not _ahead.is_collecting() and not compiled
    for job in jobs:
        job.load()
    # A model of one layer stands for the whole one: what is compiled for it must be what the whole one will ask for.
    whole = decoder(layers=24)
    assert compiled == [decode_step.macros_of(whole, step(whole, 2))]


def test_macros_are_sizes() -> None:
    net = decoder()
    macros = decode_step.macros_of(net, step(net, 1))
    assert (macros["ROWS"], macros["HIDDEN"], macros["INNER"], macros["Q_HEADS"], macros["KV_HEADS"]) == (
        1,
        896,
        4864,
        14,
        2,
    )
    assert (macros["BLOCK"], macros["HAS_BIAS"], macros["HAS_QK_NORM"], macros["CTAS"]) == (16, 1, 0, 132)
    plain = replace(net, layers=tuple(replace(layer, qkv_bias=None) for layer in net.layers))
    assert decode_step.macros_of(plain, step(plain, 1))["HAS_BIAS"] == 0
