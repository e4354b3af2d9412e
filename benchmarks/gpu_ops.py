"""Times each Triton operator at the shapes of Qwen2.5 on one GPU, as bytes or operations over time, against what the card gives.

    python benchmarks/gpu_ops.py [--sweep] [--out FILE.json]

Each figure is the median over replays of a CUDA graph of 20 calls that rotate over several caches, so that launch gaps and the L2
stay out of it. --sweep times other tile sizes instead.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import shapes
import torch
from triton.runtime.errors import OutOfResources

from quire.backends.cuda import paged_attention as hopper
from quire.backends.triton import _split_keys, linear, paged_attention
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import implementations, resolve, specs

SHAPES = {  # query heads, key heads, head size, hidden, inner
    name: (
        size["num_attention_heads"],
        size["num_key_value_heads"],
        size["hidden_size"] // size["num_attention_heads"],
        size["hidden_size"],
        size["intermediate_size"],
    )
    for name, size in shapes.SHAPES.items()
    if name != "test"
}
CALLS = 20
COMPILING_PROCESSES = 12


def device_us(calls: list[Callable[[], Any]], repeats: int = 7) -> float:
    """Microseconds one call takes on the device; `calls` are cycled through."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    count = max(CALLS, len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / count)
    return statistics.median(times)


def random_step(lens: list[tuple[int, int]], block_size: int = 16) -> tuple[ForwardBatch, int]:
    """(query length, sequence length) a row -> a step over randomly ordered blocks, and how many blocks there are."""
    per_row = [-(-s // block_size) for _, s in lens]
    ids = torch.randperm(sum(per_row), dtype=torch.int32) + 1
    tables = torch.zeros(len(lens), max(per_row), dtype=torch.int32)
    used = 0
    for row, count in enumerate(per_row):
        tables[row, :count] = ids[used : used + count]
        used += count
    positions = torch.cat([torch.arange(s - n, s) for n, s in lens])
    tokens = len(positions)
    return ForwardBatch(
        input_ids=torch.zeros(tokens, dtype=torch.int64).cuda(),
        positions=positions.cuda(),
        slot_mapping=(torch.randperm((used + 1) * block_size)[:tokens]).cuda(),
        query_start_loc=torch.tensor([0, *(n for n, _ in lens)]).cumsum(0).int().cuda(),
        seq_lens=torch.tensor([s for _, s in lens], dtype=torch.int32).cuda(),
        block_tables=tables.cuda(),
        logits_indices=torch.arange(len(lens)).cuda(),
        max_query_len=max(n for n, _ in lens),
        max_seq_len=max(s for _, s in lens),
        kv_caches=[],
    ), used + 1


def attention_calls(
    shape: str, lens: list[tuple[int, int]], graph_len: int | None = None, backend: ModuleType = paged_attention
) -> list[Callable[[], Any]]:
    """Calls on distinct caches, enough that they do not fit the L2 together."""
    q_heads, kv_heads, head_size, _, _ = SHAPES[shape]
    fwd, num_blocks = random_step(lens)
    if graph_len:
        fwd = replace(fwd, max_seq_len=graph_len)
    cache_bytes = 2 * num_blocks * 16 * kv_heads * head_size * 2
    copies = max(1, min(8, -(-300_000_000 // cache_bytes)))
    q = torch.randn(fwd.num_tokens, q_heads, head_size, device="cuda", dtype=torch.bfloat16)
    caches = [
        torch.randn(2, num_blocks, 16, kv_heads, head_size, device="cuda", dtype=torch.bfloat16) for _ in range(copies)
    ]
    return [lambda kv=kv: backend.run(q, kv, fwd, head_size**-0.5) for kv in caches]


def decode_row(shape: str, batch: int, context: int) -> dict[str, Any]:
    """Decoding attention: bytes of keys and values over time."""
    _, kv_heads, head_size, _, _ = SHAPES[shape]
    us = device_us(attention_calls(shape, [(1, context)] * batch, 16_384))
    read_bytes = batch * context * 2 * kv_heads * head_size * 2
    return {
        "op": "decode",
        "shape": shape,
        "case": f"B={batch} context={context}",
        "us": us,
        "tb_s": read_bytes / us / 1e6,
    }


def prefill_row(
    shape: str, lens: list[tuple[int, int]], label: str, op: str = "prefill", backend: ModuleType = paged_attention
) -> dict[str, Any]:
    """Prefill attention: operations of the causal half over time."""
    q_heads, _, head_size, _, _ = SHAPES[shape]
    us = device_us(attention_calls(shape, lens, backend=backend)[:1], repeats=3)
    pairs = sum(n * (s - n) + n * (n + 1) // 2 for n, s in lens)
    return {
        "op": op,
        "shape": shape,
        "case": label,
        "us": us,
        "tflop_s": 4 * pairs * q_heads * head_size / us / 1e6,
    }


def pointwise_rows(shape: str, tokens: int) -> Iterator[dict[str, Any]]:
    """Norms, activation, rotary and KV write: bytes read and written over time, beside the torch reference."""
    q_heads, kv_heads, head_size, hidden, inner = SHAPES[shape]

    def make(*size: int) -> torch.Tensor:
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    qkv = make(tokens, q_heads + 2 * kv_heads, head_size)
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), dim=1)
    slots = torch.randperm(tokens + 16, device="cuda")[:tokens]
    kv = make(2, -(-(tokens + 16) // 16), 16, kv_heads, head_size)
    positions = torch.randint(0, 4096, (tokens,), device="cuda")
    table = torch.randn(4096, head_size, device="cuda")
    x, residual, weight, wide = make(tokens, hidden), make(tokens, hidden), make(hidden), make(tokens, 2 * inner)
    cases: dict[str, tuple[tuple[Any, ...], int]] = {
        "rms_norm": ((x, weight, 1e-6), 2 * x.numel()),
        "add_rms_norm": ((x, residual, weight, 1e-6), 4 * x.numel()),
        "silu_mul": ((wide,), wide.numel() * 3 // 2),
        "rotary_write_kv": ((q, k, v, positions, table, kv, slots), 2 * q.numel() + 4 * k.numel()),
    }
    ops, modules = specs(), implementations("triton")
    for name, (arguments, values) in cases.items():
        us = device_us([lambda n=name, a=arguments: modules[n].run(*a)])
        reference_us = device_us([lambda n=name, a=arguments: ops[n].reference(*a)])
        row = {"op": name, "shape": shape, "case": f"T={tokens}", "us": us, "torch_us": reference_us}
        yield {**row, "tb_s": values * 2 / us / 1e6}


def linear_sizes(shape: str) -> dict[str, tuple[int, int]]:
    """(in, out) of each matrix of a layer, and of the head."""
    q_heads, kv_heads, head_size, hidden, inner = SHAPES[shape]
    return {
        "qkv": (hidden, (q_heads + 2 * kv_heads) * head_size),
        "o": (q_heads * head_size, hidden),
        "gate_up": (hidden, 2 * inner),
        "down": (inner, hidden),
        "head": (hidden, shapes.SHAPES[shape]["vocab_size"]),
    }


def linear_calls(product: Callable[..., Any], tokens: int, in_size: int, out_size: int) -> list[Callable[[], Any]]:
    """Products with distinct weights, enough that they do not fit the L2 together."""
    copies = max(1, min(100, -(-240_000_000 // (2 * in_size * out_size))))
    x = torch.randn(tokens, in_size, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(out_size, in_size, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return [lambda w=w: product(x, w, None) for w in weights]


def linear_rows(
    shape: str, token_counts: tuple[int, ...] = (1, 16, 64, 128, 256), library: bool = True
) -> Iterator[dict[str, Any]]:
    """Products by the operator that is chosen and by the matrix library: bytes of weight over time."""
    product = resolve(("cuda", "triton"))[0].linear
    for name, (in_size, out_size) in linear_sizes(shape).items():
        for tokens in token_counts:
            us = device_us(linear_calls(product, tokens, in_size, out_size))
            row: dict[str, Any] = {"op": "linear", "shape": shape, "case": f"{name} T={tokens}", "us": us}
            if library:
                row["torch_us"] = device_us(linear_calls(torch.nn.functional.linear, tokens, in_size, out_size))
            yield {**row, "tb_s": 2 * in_size * out_size / us / 1e6}


def sweep_linear() -> Iterator[dict[str, Any]]:
    """Other tiles of the product of one row."""
    gemv_tiles = linear.gemv_tiles
    tiles = [
        (n, k, w)
        for n, k, w in itertools.product((1, 2, 4, 8, 16), (512, 1024, 2048, 4096), (2, 4, 8))
        if n * k <= 16_384
    ]
    for block_n, block_k, warps in tiles:
        linear.gemv_tiles = lambda *a, t=(block_n, block_k, warps): t
        for shape in SHAPES:
            for row in linear_rows(shape, (1,), library=False):
                yield {**row, "tiles": f"n={block_n} k={block_k} warps={warps}"}
    linear.gemv_tiles = gemv_tiles


def ceilings() -> dict[str, float]:
    """What a large copy and a large product give on this card."""
    a, b = (torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy_us = device_us([lambda: b.copy_(a)], repeats=3)
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_us = device_us([lambda: x @ y], repeats=3)
    return {"copy_tb_s": 2 * 2**31 / copy_us / 1e6, "product_tflop_s": 2 * 8192**3 / product_us / 1e6}


def sweep_attention() -> Iterator[dict[str, Any]]:
    """Other tiles of the attention kernels."""
    decode_tiles, prefill_tiles, splits = _split_keys.decode_tiles, paged_attention.prefill_tiles, _split_keys.splits
    few = [("0.5b", 1, 256), ("7b", 1, 256), ("7b", 1, 1024), ("7b", 8, 1024)]
    many = [("0.5b", 256, 256), ("7b", 64, 256), ("7b", 256, 256), ("7b", 256, 1024)]
    for split, block_n, warps, stages, cases in (
        *((64, n, w, s, few) for n, w, s in itertools.product((32, 64), (2, 4), (2, 3, 5))),
        *((128, n, w, s, few) for n, w, s in itertools.product((64, 128), (4,), (2, 4))),
        *((256, n, w, s, many) for n, w, s in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 5))),
    ):
        _split_keys.decode_tiles = lambda *a, b=block_n, w=warps, s=stages: replace(
            decode_tiles(*a), block_n=b, num_warps=w, num_stages=s
        )
        _split_keys.splits = lambda n, keys=split: (keys, 64 if keys < 256 else 32)
        tiles = {"tiles": f"split={split} n={block_n} warps={warps} stages={stages}"}
        for shape, batch, context in cases:
            try:
                yield {**decode_row(shape, batch, context), **tiles}
            except OutOfResources as error:
                yield {"op": "decode", "shape": shape, **tiles, "error": str(error)}
    _split_keys.decode_tiles, _split_keys.splits = decode_tiles, splits
    for block_m, block_n, warps, stages in (
        (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3),
    ):  # fmt: skip
        paged_attention.prefill_tiles = lambda *a, m=block_m, b=block_n, w=warps, s=stages: replace(
            prefill_tiles(*a), block_m=m, block_n=b, num_warps=w, num_stages=s
        )
        for shape in ("7b", "0.5b"):
            tiles = {"tiles": f"m={block_m} n={block_n} warps={warps} stages={stages}"}
            try:
                yield {**prefill_row(shape, [(8192, 8192)], "1 x 8192"), **tiles}
            except OutOfResources as error:
                yield {"op": "prefill", "shape": shape, **tiles, "error": str(error)}
    paged_attention.prefill_tiles = prefill_tiles


def sweep_splits() -> Iterator[dict[str, Any]]:
    """Key splits of decoding attention at batch sizes where it is open how many programs there should be."""
    splits = _split_keys.splits
    for keys, most in ((64, 64), (128, 64), (256, 32)):
        _split_keys.splits = lambda n, s=(keys, most): s
        for shape, batch, context in itertools.product(("0.5b", "7b"), (8, 32, 64, 128, 256), (256, 1024, 2048)):
            yield {**decode_row(shape, batch, context), "tiles": f"split={keys}"}
    _split_keys.splits = splits


def rows() -> Iterator[dict[str, Any]]:
    """The operators as they are."""
    for shape in SHAPES:
        for tokens in (1, 256, 8192):
            yield from pointwise_rows(shape, tokens)
        yield from linear_rows(shape)
        for batch, context in ((1, 256), (1, 1024), (8, 4096), (64, 1024), (256, 256), (256, 1024)):
            yield decode_row(shape, batch, context)
        for lens, label in (
            ([(1024, 1024)], "1 x 1024"),
            ([(8192, 8192)], "1 x 8192"),
            ([(8192, 8192)] * 2, "2 x 8192"),
            ([(256, 256)] * 32, "32 x 256"),
        ):
            yield prefill_row(shape, lens, label)
            if not hopper.why_not():
                yield prefill_row(shape, lens, label, "prefill Hopper", hopper)


def chosen_rows(sweep: bool) -> Iterator[dict[str, Any]]:
    return itertools.chain(sweep_linear(), sweep_attention()) if sweep else rows()


def compile_in_processes(sweep: bool) -> None:
    """Fills Triton's cache on many cores, so that timing does not wait for compilations one by one."""
    command = [sys.executable, __file__, *(["--sweep"] if sweep else []), "--compile"]
    running = [
        subprocess.Popen([*command, str(share)], stdout=subprocess.DEVNULL) for share in range(COMPILING_PROCESSES)
    ]
    for process in running:
        process.wait()


def compile_share(share: int, sweep: bool) -> None:
    """Calls the operators of one share of the cases once."""
    numbers = itertools.count()

    def once(calls: list[Callable[[], Any]], repeats: int = 7) -> float:
        if next(numbers) % COMPILING_PROCESSES == share:
            calls[0]()
        return 1.0

    sys.modules[__name__].device_us = once  # type: ignore[attr-defined]
    for _ in chosen_rows(sweep):
        pass


def print_best(found: list[dict[str, Any]]) -> None:
    """The three fastest tiles of each case."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        if "us" in row and "tiles" in row:
            cases.setdefault(f"{row['op']} {row['shape']} {row['case']}", []).append(row)
    for name, tried in cases.items():
        best = sorted(tried, key=lambda row: row["us"])[:3]
        print(f"{name:34s}", "   ".join(f"{row['us']:.2f} us ({row['tiles']})" for row in best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes in place of the chosen ones")
    parser.add_argument("--splits", action="store_true", help="time other key splits of decoding attention alone")
    parser.add_argument("--out", help="also write the rows as JSON")
    parser.add_argument("--compile", type=int, metavar="N", help="only compile every case whose number is N modulo 12")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.splits:
        print_best(list(sweep_splits()))
        return
    if options.compile is not None:
        compile_share(options.compile, options.sweep)
        return
    compile_in_processes(options.sweep)
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), **ceilings(), "rows": []}
    print({k: v for k, v in result.items() if k != "rows"}, flush=True)
    for row in chosen_rows(options.sweep):
        result["rows"].append(row)
        print("  ".join(f"{v:9.2f}" if isinstance(v, float) else f"{v:14s}" for v in row.values()), flush=True)
        if options.out:
            with open(options.out, "w") as file:
                json.dump(result, file, indent=1)
    print_best(result["rows"])


if __name__ == "__main__":
    main()
