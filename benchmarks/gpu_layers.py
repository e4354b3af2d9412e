"""Decoding steps of many rows on one GPU, from token ids to the likeliest tokens: layer by layer, and with norms joined to products.

    python benchmarks/gpu_layers.py 0.5b:64 7b:256 [--context 200] [--tiles 12] [--seconds 15]

Each figure is milliseconds of a CUDA graph of a whole step with random weights: median of replays. Tiles of the products (JOINED of
quire/backends/cuda/_product_tiles.py) are tried one product after the other, the others as found so far; --tiles 0 times the tables'.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import shapes
import torch
from gpu_ops import SHAPES, linear_sizes, random_step
from gpu_products import tiles

from quire.backends.cuda import _product, decode_layers, linear, linear_greedy, linear_silu_mul
from quire.backends.cuda._product_tiles import Joined, Tile, choose
from quire.backends.triton import add_rms_norm, rms_norm
from quire.ops.decode_step import DecoderTensors, LayerTensors
from quire.ops.embedding import embedding
from quire.ops.forward_batch import ForwardBatch

ENDS = {
    "qkv": _product.Ends(bias=True, normed=True), "out": _product.Ends(add=True), "gate_up": _product.Ends(gated=True, normed=True),
    "down": _product.Ends(add=True),
}  # fmt: skip
ORDER = ("down", "gate_up", "out", "qkv")
LONGEST = 16_384  # graphs are made for it


def graph_ms(step: Callable[[], Any], repeats: int = 5) -> float:
    """Milliseconds of `step` on the device."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 2)
    return statistics.median(times)


def random_net(shape: str) -> DecoderTensors:
    """A decoder of that shape with random weights."""
    sizes, (heads, kv_heads, head_dim, hidden, _) = linear_sizes(shape), SHAPES[shape]

    def draw(name: str) -> torch.Tensor:
        in_size, out_size = sizes[name]
        return torch.empty(out_size, in_size, device="cuda", dtype=torch.bfloat16).normal_().mul_(in_size**-0.5)

    ones = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(sizes["qkv"][1], device="cuda").bfloat16()
    layers = tuple(
        LayerTensors(draw("qkv"), bias, None, None, draw("o"), draw("gate_up"), draw("down"), ones, ones, 0)
        for _ in range(shapes.SHAPES[shape]["num_hidden_layers"])
    )
    angles = torch.rand(4096, head_dim // 2, device="cuda") * 6.28
    head, table = draw("head"), torch.cat((angles.cos(), angles.sin()), dim=1)
    return DecoderTensors(head, layers, ones, head, table, heads, kv_heads, head_dim, 1e-6, head_dim**-0.5)


def random_batch(net: DecoderTensors, num_rows: int, context: int) -> ForwardBatch:
    fwd, num_blocks = random_step([(1, context)] * num_rows)
    caches = [
        torch.empty(
            2, num_blocks + 1, 16, net.num_kv_heads, net.head_dim, device="cuda", dtype=torch.bfloat16
        ).normal_()
        for _ in net.layers
    ]
    ids = torch.randint(0, net.head.shape[0], (num_rows,), device="cuda")
    return replace(fwd, input_ids=ids, kv_caches=caches, max_seq_len=LONGEST)


def layer_by_layer(net: DecoderTensors, fwd: ForwardBatch) -> torch.Tensor:
    """The layers' operators one after the other, as models call them."""
    residual = embedding(fwd.input_ids, net.embedding)
    x = rms_norm.run(residual, net.layers[0].input_norm, net.eps)
    norms = [*(layer.input_norm for layer in net.layers[1:]), net.norm]
    for layer, kv, norm in zip(net.layers, fwd.kv_caches, norms, strict=True):
        heads = decode_layers._attend(net, layer, linear.run(x, layer.qkv, layer.qkv_bias), kv, fwd)
        x = add_rms_norm.run(linear.run(heads, layer.out), residual, layer.inner_norm, net.eps)[0]
        x = linear.run(linear_silu_mul.run(x, layer.gate_up), layer.down)
        x = add_rms_norm.run(x, residual, norm, net.eps)[0]
    return x


def candidates(shape: str, num_rows: int, count: int) -> dict[str, list[Tile]]:
    """Tiles to try for each product, compiled."""
    sizes = linear_sizes(shape)
    found = {}
    for name in ORDER:
        in_size, out_size = sizes["o" if name == "out" else name]
        chosen = choose(num_rows, out_size, in_size, name == "gate_up")
        ranked = tiles(num_rows, out_size, in_size, name == "gate_up", False, count)
        found[name] = list(dict.fromkeys(([chosen] if chosen else []) + ranked))
    kinds = [(tile, ENDS[name]) for name in ORDER for tile in found[name]]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda kind: _product._compiled(*kind), kinds))
    return found


def better_tiles(step: Callable[[Joined | None], float], found: dict[str, list[Tile]], seconds: float) -> Joined:
    """Of each product the tile with which the whole step is shortest, one product after the other."""
    deadline = time.monotonic() + seconds
    best = Joined(**{name: ranked[0] for name, ranked in found.items()})
    for name in ORDER:
        choices: list[Tile | None] = [*found[name], *([None] if name in ("out", "down") else [])]
        timed = []
        for tile in choices:
            if timed and time.monotonic() > deadline:
                break
            timed.append((step(best._replace(**{name: tile})), tile))
        timed.sort(key=lambda pair: pair[0])
        best = best._replace(**{name: timed[0][1]})
        print(f"   {name:8s}", "  ".join(f"{ms:.4f} {tile and tuple(tile)}" for ms, tile in timed[:5]), flush=True)
    return best


def measure(shape: str, num_rows: int, options: argparse.Namespace) -> None:
    net = random_net(shape)
    fwd = random_batch(net, num_rows, options.context)

    def joined_ms(tiles: Joined | None) -> float:
        decode_layers._tiles = lambda net, rows: tiles  # what the tables would give
        return graph_ms(lambda: linear_greedy.run(decode_layers.run(net, fwd), net.head))

    chosen = decode_layers._tiles(net, num_rows)
    plain_ms = graph_ms(lambda: linear_greedy.run(layer_by_layer(net, fwd), net.head))
    before = joined_ms(chosen) if chosen else None
    print(
        f"{shape} {num_rows} rows: layer by layer {plain_ms:.4f} ms, joined {before and round(before, 4)}", flush=True
    )
    if options.tiles:
        best = better_tiles(joined_ms, candidates(shape, num_rows, options.tiles), options.seconds)
        print(f"   best {joined_ms(best):.4f} {tuple(t and tuple(t) for t in best)}", flush=True)


def cases(names: list[str]) -> Iterator[tuple[str, int]]:
    for name in names:
        shape, rows = name.split(":")
        yield shape, int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", help="SHAPE:ROWS")
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--tiles", type=int, default=0, help="how many to try of each product")
    parser.add_argument("--seconds", type=float, default=15, help="to spend on a case's tiles")
    options = parser.parse_args()
    table = decode_layers._tiles
    for shape, rows in cases(options.cases):
        decode_layers._tiles = table
        measure(shape, rows, options)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
