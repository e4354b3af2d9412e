"""Times the persistent decoding kernel at the shapes of Qwen2.5 on one GPU: milliseconds a step, and where they go.

    python benchmarks/gpu_decode_step.py [SHAPE...] [--rows 1 8] [--context 256]

A step is one of 20 in a CUDA graph, median of 7 replays. Phases are times between marks of the clock that each CTA leaves, averaged over
CTAs and layers: "take" is waiting for and loading what others have computed, "work" the rest.
"""

import argparse
import struct
from typing import Any
from unittest.mock import patch

import torch
from gpu_ops import device_us
from shapes import SHAPES

from quire.backends.cuda import decode_step as module
from quire.ops.decode_step import DecoderTensors, LayerTensors
from quire.ops.forward_batch import ForwardBatch

BLOCK = 16
PHASES = ("qkv", "attention", "out", "gate_up", "down")
MARKS = 2 * len(PHASES)  # of a layer


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * shape[-1] ** -0.5


def decoder(shape: str) -> DecoderTensors:
    """A model of that shape with random weights."""
    c = SHAPES[shape]
    hidden, inner, heads, kv_heads = (
        c[f"{name}"] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    head_dim = hidden // heads
    norm = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)

    def layer() -> LayerTensors:
        qkv = (heads + 2 * kv_heads) * head_dim
        return LayerTensors(
            draw(qkv, hidden), draw(qkv), None, None, draw(hidden, heads * head_dim), draw(2 * inner, hidden), draw(hidden, inner),
            norm, norm, 0,
        )  # fmt: skip

    embedding = draw(c["vocab_size"], hidden)
    layers = tuple(layer() for _ in range(c["num_hidden_layers"]))
    angles = torch.rand(4096, head_dim, device="cuda")
    return DecoderTensors(embedding, layers, norm, embedding, angles, heads, kv_heads, head_dim, 1e-6, head_dim**-0.5)


def step_of(net: DecoderTensors, rows: int, context: int) -> ForwardBatch:
    """`rows` sequences of `context` tokens, the one to compute included."""
    per_row = -(-context // BLOCK)
    tables = (torch.randperm(rows * per_row) + 1).int().view(rows, per_row).cuda()
    shape = (2, rows * per_row + 1, BLOCK, net.num_kv_heads, net.head_dim)
    int64, every = torch.zeros(rows, dtype=torch.int64, device="cuda"), torch.arange(rows + 1, device="cuda")
    return ForwardBatch(
        input_ids=int64 + 5,
        positions=int64 + context - 1,
        slot_mapping=tables[:, -1].long() * BLOCK + (context - 1) % BLOCK,
        query_start_loc=every.int(),
        seq_lens=(int64 + context).int(),
        block_tables=tables,
        logits_indices=every[:-1],
        max_query_len=1,
        max_seq_len=context,
        kv_caches=[torch.randn(shape, device="cuda").bfloat16() for _ in net.layers],
    )


def milliseconds(net: DecoderTensors, fwd: ForwardBatch) -> float:
    """Of one step."""
    step = module.Step(net, fwd)
    return device_us([lambda: step.run(net, fwd)]) / 1e3


def phases_us(net: DecoderTensors, fwd: ForwardBatch) -> dict[str, float]:
    """Mean microseconds of each phase, and of the head."""
    num_layers = len(net.layers)
    stamps = torch.zeros(module.num_processors(), num_layers * MARKS + 3, dtype=torch.int64, device="cuda")
    macros, pack = {**module.macros_of(net, fwd), "STAMPS": 1}, struct.pack

    def with_stamps(form: str, *values: Any) -> bytes:
        return pack(form, *values[:-1], stamps.data_ptr())  # the last argument of the kernel

    with patch.object(module, "macros_of", lambda net, fwd: macros), patch.object(module.struct, "pack", with_stamps):
        module.Step(net, fwd).run(net, fwd)
    t = stamps.double().cpu() / 1e3
    marks = torch.stack(
        [t[:, i : i + MARKS + 1] for i in range(MARKS, num_layers * MARKS, MARKS)]
    )  # but the first layer's
    found = {}
    for i, name in enumerate(PHASES):
        begin, took, end = marks[..., 2 * i], marks[..., 2 * i + 1], marks[..., 2 * i + 2]
        busy = took >= begin  # CTAs without a share of attention leave no second mark
        found[f"{name} take"] = float((took - begin)[busy].mean())
        found[f"{name} work"] = float((end - took)[busy].mean())
    return {
        **found,
        "layer": float((marks[..., -1] - marks[..., 0]).mean()),
        "head": float((t[:, -1] - t[:, -3]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="0.5b 1.5b 7b; default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[256, 1024])
    options = parser.parse_args()
    for shape in options.shapes or ["0.5b", "1.5b", "7b"]:
        net = decoder(shape)
        for rows in options.rows:
            for context in options.context:
                fwd = step_of(net, rows, context)
                if module.refusals(net, fwd):
                    print(f"{shape} rows {rows}: {', '.join(module.refusals(net, fwd))}")
                    continue
                phases = ", ".join(f"{name} {us:.2f}" for name, us in phases_us(net, fwd).items())
                print(
                    f"{shape} rows {rows} context {context}: {milliseconds(net, fwd):.4f} ms; us: {phases}", flush=True
                )


if __name__ == "__main__":
    main()
