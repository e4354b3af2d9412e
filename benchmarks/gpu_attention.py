"""Times attention of decoding rows as layers have it: between two products, in a CUDA graph, by what it adds to these.

    python benchmarks/gpu_attention.py [SHAPE ...]

Each layer has weights and a cache of its own. What each row of the table has: microseconds a layer without attention; what rotation, write
to the cache and attention add, by Triton's operators and by the kernel for Hopper GPUs; how long memory would take at 4.6 TB/s.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import shapes
import torch
from gpu_ops import SHAPES, device_us, random_step
from torch import Tensor

from quire.backends.cuda import linear
from quire.backends.cuda import rotary_attention as hopper
from quire.backends.triton import rotary_attention as triton
from quire.ops.forward_batch import ForwardBatch

LAYERS, ROUNDS = 8, 3  # of a chain, and chains of a graph
LONGEST = 16_384
MEMORY_BYTES_PER_US = 4.6e6
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, ForwardBatch, float], Tensor]


def cases() -> dict[str, list[int]]:
    """Lengths of rows: alike, as in `decode_b64` and `decode_b256`, and as chat traffic has them halfway."""
    rng = np.random.default_rng(0)
    prompts, outputs = shapes.chat_lengths(512)
    return {
        "64 x 200": [200] * 64,
        "64 x 128..272": rng.integers(128, 273, 64).tolist(),
        "256 x 200": [200] * 256,
        "256 x 128..272": rng.integers(128, 273, 256).tolist(),
        "256 x 1024": [1024] * 256,
        "16 x 1000": [1000] * 16,
        "512 of chat": [prompt + output // 2 for prompt, output in zip(prompts, outputs, strict=True)],
    }


class Chain:
    """Layers of nothing but qkv product, attention and output product, over rows of `lens` tokens."""

    def __init__(self, shape: str, lens: list[int]) -> None:
        self.q_heads, self.kv_heads, self.head_size, hidden, _ = SHAPES[shape]
        fwd, num_blocks = random_step([(1, n) for n in lens])
        tables = torch.zeros(len(lens), LONGEST // 16, dtype=torch.int32, device="cuda")
        tables[:, : fwd.block_tables.shape[1]] = fwd.block_tables
        last = (fwd.seq_lens - 1).long()
        slots = fwd.block_tables[torch.arange(len(lens), device="cuda"), last // 16].long() * 16 + last % 16
        self.fwd = replace(fwd, block_tables=tables, max_seq_len=LONGEST, slot_mapping=slots, positions=last)

        def make(*size: int) -> Tensor:
            return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

        width = (self.q_heads + 2 * self.kv_heads) * self.head_size
        self.x, self.cos_sin = make(len(lens), hidden), torch.randn(LONGEST, self.head_size, device="cuda")
        self.layers = [
            (
                make(width, hidden) * 0.02,
                make(width),
                make(2, num_blocks, 16, self.kv_heads, self.head_size),
                make(hidden, self.q_heads * self.head_size) * 0.02,
            )
            for _ in range(LAYERS)
        ]
        self.read_bytes = sum(lens) * self.kv_heads * self.head_size * 4

    def run(self, attend: Attend | None) -> None:
        x, fwd, q_size = self.x, replace(self.fwd), self.q_heads * self.head_size
        for qkv, bias, kv, out in self.layers * ROUNDS:
            y = linear.run(x, qkv, bias)
            if attend is None:
                x = linear.run(y[:, :q_size], out, None)
                continue
            heads = y.view(-1, self.q_heads + 2 * self.kv_heads, self.head_size)
            q, k, v = heads.split((self.q_heads, self.kv_heads, self.kv_heads), dim=1)
            x = linear.run(attend(q, k, v, self.cos_sin, kv, fwd, self.head_size**-0.5).view(-1, q_size), out, None)

    def us(self, attend: Attend | None) -> float:
        """Microseconds a layer."""
        return device_us([lambda: self.run(attend)]) / (LAYERS * ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    for shape in parser.parse_args().shapes:
        for name, lens in cases().items():
            chain = Chain(shape, lens)
            alone = chain.us(None)
            added = "  ".join(
                f"{label} +{chain.us(attend) - alone:7.2f}"
                for label, attend in (("triton", triton.run), ("hopper", hopper.run))
            )
            print(
                f"{shape:5s} {name:15s} products {alone:6.2f}  {added}  memory {chain.read_bytes / MEMORY_BYTES_PER_US:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
