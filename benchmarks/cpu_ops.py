"""Times the CPU kernels at the shapes of Qwen2.5-0.5B in bf16 beside torch's own operators, in one run.

    python benchmarks/cpu_ops.py [--threads N] [--repeats N]

Each figure is the best of several calls: neighbours on a shared machine only ever slow a call down. Weights of a few rows' products
rotate over more memory than the caches hold, as the layers of a model do; "a plain read" is the rate at which torch sums that memory.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.backends.cpu import _native, linear, paged_attention
from quire.ops.paged_attention import _random_batch

LINEARS = {"qkv": (896, 1152), "o": (896, 896), "gate_up": (896, 9728), "down": (4864, 896), "head": (896, 151_936)}
ROWS = (1, 2, 4, 8, 16, 64, 512)
ROTATED_BYTES = 400 << 20
# name: (query length, sequence length) of each sequence
ATTENTION = {
    "decode 1 x 256": [(1, 256)],
    "decode 1 x 4096": [(1, 4096)],
    "decode 64 x 1024": [(1, 1024)] * 64,
    "prefill 512": [(512, 512)],
    "prefill 2048": [(2048, 2048)],
    "chunk 512 at 4096": [(512, 4096)],
}
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 14, 2, 64, 16


def best_s(calls: list[Callable[[], Any]], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls; `calls` are cycled through."""
    best = float("inf")
    for i in range(repeats + 2):
        begin = time.perf_counter()
        calls[i % len(calls)]()
        best = min(best, time.perf_counter() - begin if i >= 2 else best)
    return best


def read_rate(repeats: int) -> float:
    """Bytes a second of a plain read."""
    data = torch.ones(ROTATED_BYTES // 4)
    return ROTATED_BYTES / best_s([lambda: data.sum()], repeats)


def linears(name: str, run: Callable[[Tensor, Tensor], Tensor], repeats: int) -> None:
    for layer, (k, n) in LINEARS.items():
        size = 2 * k * n
        weights = [torch.randn(n, k).bfloat16() for _ in range(max(1, min(64, ROTATED_BYTES // size)))]
        for m in ROWS:
            if m * n > 512 * 9728:
                continue
            x = torch.randn(m, k).bfloat16()
            seconds = best_s([partial(run, x, weight) for weight in weights], repeats if m < 512 else 8)
            rates = f"{size / seconds / 1e9:5.1f} GB/s {2 * m * k * n / seconds / 1e9:5.0f} GFLOP/s"
            print(f"{name} linear {layer:8}{k:5} x {n:6}  M={m:<4}{seconds * 1e6:8.0f} us {rates}", flush=True)


def attention(repeats: int) -> None:
    for name, lens in ATTENTION.items():
        fwd, num_blocks = _random_batch(torch.Generator().manual_seed(0), lens, BLOCK_SIZE, torch.device("cpu"))
        kv = torch.randn(2, num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM).bfloat16()
        q = torch.randn(sum(n for n, _ in lens), HEADS, HEAD_DIM).bfloat16()
        seconds = best_s([partial(paged_attention.run, q, kv, fwd, HEAD_DIM**-0.5)], repeats)
        size = sum(s for _, s in lens) * KV_HEADS * HEAD_DIM * 4
        pairs = sum(n * s - n * (n - 1) // 2 for n, s in lens)
        flops = 4 * pairs * HEADS * HEAD_DIM
        print(
            f"attention {name:18} {seconds * 1e6:8.0f} us {size / seconds / 1e9:5.1f} GB/s {flops / seconds / 1e9:5.0f} GFLOP/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    _native.set_num_threads(args.threads)
    print(f"{_native.isa()}, {args.threads} threads; a plain read: {read_rate(args.repeats) / 1e9:.1f} GB/s")
    with torch.inference_mode():
        # quire first and torch set to one thread meanwhile: its idle workers spin for a while after each of its operators.
        torch.set_num_threads(1)
        linears("quire", linear.run, args.repeats)
        attention(args.repeats)
        torch.set_num_threads(args.threads)
        linears("torch", F.linear, args.repeats)


if __name__ == "__main__":
    main()
