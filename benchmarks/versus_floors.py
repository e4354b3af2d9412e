"""How fast a workload could be on this device: for each operator the larger of its bytes over the copy rate and its sums over the
matrix rate, both measured in the same run; activations, launches and the host cost nothing.

    python benchmarks/versus_floors.py          measures the two rates and prints one RESULT line
"""

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from typing import Any

import shapes

ITEM_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Rates:
    """bytes_s: of a copy on the device, read and written. flops_s: of a large matrix product."""

    bytes_s: float
    flops_s: float


@dataclass(frozen=True)
class Sizes:
    """What the floors need of a model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's products."""
        kv = self.kv_heads * self.head_dim
        return [
            (self.hidden, self.hidden + 2 * kv),
            (self.hidden, self.hidden),
            (self.hidden, 2 * self.inner),
            (self.inner, self.hidden),
        ]

    @property
    def kv_bytes(self) -> int:
        """Of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * ITEM_BYTES


def sizes_of(shape: str) -> Sizes:
    c = shapes.SHAPES[shape]
    return Sizes(
        c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"],
        c["intermediate_size"], c["vocab_size"],
    )  # fmt: skip


def product_s(rows: int, in_size: int, out_size: int, rates: Rates) -> float:
    """Seconds of one product with a weight."""
    return max(ITEM_BYTES * in_size * out_size / rates.bytes_s, 2 * rows * in_size * out_size / rates.flops_s)


def decode_step_s(sizes: Sizes, batch: int, context: float, rates: Rates) -> float:
    """One step of `batch` rows that each see `context` tokens."""
    linears = sizes.layers * sum(product_s(batch, i, o, rates) for i, o in sizes.linears)
    head = product_s(batch, sizes.hidden, sizes.vocab, rates)
    return linears + head + batch * context * sizes.kv_bytes / rates.bytes_s


def prefill_s(sizes: Sizes, lengths: list[int], rates: Rates) -> float:
    """All prompts at once, one token out of each. A token sees half of its prompt on average."""
    tokens = sum(lengths)
    linears = sizes.layers * sum(product_s(tokens, i, o, rates) for i, o in sizes.linears)
    scores = sum(4 * n * n / 2 for n in lengths) * sizes.layers * sizes.heads * sizes.head_dim
    return linears + scores / rates.flops_s + product_s(len(lengths), sizes.hidden, sizes.vocab, rates)


def chat_s(sizes: Sizes, num_in: list[int], num_out: list[int], rates: Rates) -> float:
    """All requests as if every product had enough rows to be bound by sums, and each output token read its own context."""
    tokens = sum(num_in) + sum(num_out)
    linears = sizes.layers * sum(2 * tokens * i * o for i, o in sizes.linears)
    head = 2 * sum(num_out) * sizes.hidden * sizes.vocab
    scores = sum(4 * n * n / 2 for n in num_in) * sizes.layers * sizes.heads * sizes.head_dim
    reads = sum(o * (i + o / 2) for i, o in zip(num_in, num_out, strict=True)) * sizes.kv_bytes
    return (linears + head + scores) / rates.flops_s + reads / rates.bytes_s


def floors(shape: str, rates: Rates, scale: Any) -> dict[str, float]:
    """The best that each workload could give, in the workload's unit."""
    sizes = sizes_of(shape)
    prompt, short, long = scale.decode
    context = prompt + (short + long) / 2
    found = {f"decode_b{b}": 1e3 * decode_step_s(sizes, b, context, rates) for b in (1, 8, 64, 256)}
    count, length = scale.prefill
    found["prefill"] = count * length / prefill_s(sizes, [length] * count, rates)
    found["ttft_1k"] = 1e3 * prefill_s(sizes, [scale.ttft], rates)
    num_in, num_out = shapes.chat_lengths(scale.chat)
    found["chat"] = scale.chat / chat_s(sizes, num_in, num_out, rates)
    return found


def measure() -> dict[str, Any]:
    """The two rates of this machine's device, and what the machine is."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    copied = torch.empty(2**32 if gpu else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(copied)
    size = 8192 if gpu else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy_s = seconds_of(lambda: target.copy_(copied), torch, gpu)
    product = seconds_of(lambda: a @ b, torch, gpu)
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    return {
        "machine": f"{name}, {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "bytes_s": 2 * copied.numel() / copy_s,
        "flops_s": 2 * size**3 / product,
    }


def seconds_of(work: Any, torch: Any, gpu: bool) -> float:
    """The shortest of ten calls after three."""
    times = []
    for turn in range(13):
        if gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        times += [time.perf_counter() - begin] if turn > 2 else []
    return min(times)


if __name__ == "__main__":
    print("RESULT", json.dumps(measure()), flush=True)
    sys.exit(0)
