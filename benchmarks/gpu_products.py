"""Times tiles of the own products (quire/backends/cuda/_product_tiles.py) beside the matrix library, at the sizes of Qwen2.5.

    python benchmarks/gpu_products.py [--rows 16,64,128,256] [--shapes 0.5b,7b] [--products qkv,head] [--tiles 24] [--out FILE.json]

Each figure is microseconds of a pair, the norm that comes before the product and the product, less those of the norm alone: median of
replays of a CUDA graph of 20 pairs or more with distinct weights, so that neither weights lie in the L2 nor launches are waited for. Tiles are
tried in the order of a rough guess at their time.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from gpu_ops import SHAPES, device_us, linear_sizes

from quire.backends.cuda import _product
from quire.backends.cuda._product_tiles import Tile, choose, choose_greedy
from quire.backends.triton import add_rms_norm, greedy, linear_greedy, silu_mul

PAIRS = 24
COLUMNS = (32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 160, 176, 192, 208, 224, 256)
GROUPS = ((1, 1), (2, 1), (4, 1), (2, 2))  # warpgroups, blocks of 64 rows each
SHARED_BYTES = 232_448
PROCESSORS, CLOCKS_US = 132, 1755
IN_CLUSTERS = {1: 132, 2: 132, 4: 128, 8: 128}  # programs of clusters that fit on the device, one a multiprocessor
L2_BYTES, SHARED_BYTES_CLOCK, SENT_BYTES, FLOP = 36, 128, {False: 9, True: 25}, 4096  # of a multiprocessor, a clock


def guess_us(tile: Tile, rows: int, out_size: int, in_size: int, gated: bool) -> float:
    """A rough time: the longest of what the L2, shared memory and matrix units need for each 64 columns of x, and the end of a tile."""
    m, n = tile.rows, tile.columns
    programs = -(-rows // m) * -(-out_size // n) * tile.split
    registers = 40 + n // 2 if tile.blocks == 1 else 168
    fitting = max(1, min(SHARED_BYTES // (tile.shared_bytes + 1024), 65_536 // (tile.num_threads * registers)))
    room = IN_CLUSTERS[tile.split * tile.share]
    waves, beside = math.ceil(programs / (room * fitting)), min(fitting, math.ceil(programs / room))
    read = 4 * tile.groups * tile.blocks * (2048 + 32 * n) + (m + n) * 128
    step = max((m / tile.share + n) * 128 / L2_BYTES, read / SHARED_BYTES_CLOCK, 2 * m * n * 64 / FLOP) * beside
    sent = m * n * 4 * (tile.split - 1) / tile.split / SENT_BYTES[tile.bulk] * beside
    finish = sent + m * n / 128 / tile.groups * (14 if gated else 5)
    return (
        waves * (-(-in_size // 64 // tile.split) * step + finish) / CLOCKS_US + 0.3 * (tile.split > 1) + 0.4 * tile.bulk
    )


def tiles(rows: int, out_size: int, in_size: int, gated: bool, long: bool, most: int) -> list[Tile]:
    """Tiles that can be launched, the most promising first. long: no split, few columns are not worth a try."""
    found = set()
    for (groups, blocks), columns, split in ((g, c, s) for g in GROUPS for c in COLUMNS for s in (1, 2, 4, 8)):
        too_many_rows = 64 * groups * blocks >= 2 * max(rows, 64)
        too_many_columns = columns > (128 if groups == 4 else 256 // blocks + 64 * (blocks > 1))
        unfit = (gated and columns % 16) or in_size < 128 * split or (split > 1 and blocks > 1)
        if too_many_rows or too_many_columns or unfit or (long and (split > 1 or columns < 96)):
            continue
        found.update(_with_stages(groups, blocks, columns, split, in_size))
    return sorted(found, key=lambda tile: guess_us(tile, rows, out_size, in_size, gated))[:most]


def _with_stages(groups: int, blocks: int, columns: int, split: int, in_size: int) -> Iterator[Tile]:
    """Such tiles for one and for two programs a multiprocessor, sums in small and in one piece, x asked for by each program and by every other."""
    stage_bytes, steps = (64 * groups * blocks + columns) * 128, -(-in_size // 64 // split)
    sums_bytes = Tile(groups, blocks, columns, 0, split).shared_bytes - 1024
    for room, bulk in ((room, bulk) for room in (106_000, 226_000) for bulk in (False, True)[: 1 + (split > 1)]):
        stages = min((room - sums_bytes) // stage_bytes, steps, 12)
        fits = stages >= min(3, steps) and (not bulk or stages * stage_bytes >= sums_bytes)
        for share in (1, 2) if split < 8 and fits else (1,) if fits else ():
            yield Tile(groups, blocks, columns, stages, split, bulk, share)


def product_calls(name: str, tile: Tile | None) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Any]:
    """What is timed: the library's way for None, the own product with that tile else."""

    def library(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        out = F.linear(x, weight, bias)
        return silu_mul.run(out) if name == "gate_up" else greedy.run(out) if name == "head" else out

    def own(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        if name == "head":
            return linear_greedy.pick(*_product.likeliest(x, weight, tile))
        return _product.multiply(x, weight, bias, tile, gated=name == "gate_up")

    return library if tile is None else own


def measure(shape: str, name: str, rows: int, most: int) -> dict[str, Any]:
    """The library's time, that of the tile chosen by the tables, and those of `most` tiles, the best first."""
    in_size, out_size = linear_sizes(shape)[name]
    copies = max(1, min(PAIRS, -(-200_000_000 // (2 * in_size * out_size))))
    weights = [
        torch.randn(out_size, in_size, device="cuda", dtype=torch.bfloat16) * in_size**-0.5 for _ in range(copies)
    ]
    x, residual = torch.randn(2, rows, in_size, device="cuda", dtype=torch.bfloat16)
    ones = torch.ones(in_size, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(out_size, device="cuda", dtype=torch.bfloat16) if name == "qkv" else None

    def norm() -> torch.Tensor:
        return add_rms_norm.run(x, residual, ones, 1e-6)[0]

    norm_us = device_us([norm])

    def pair_us(tile: Tile | None) -> float:
        product = product_calls(name, tile)
        return device_us([lambda w=w: product(norm(), w, bias) for w in weights]) - norm_us

    tried = tiles(rows, out_size, in_size, name == "gate_up", name == "head", most)
    ends = _product.Ends(gated=name == "gate_up", greedy=name == "head", bias=bias is not None)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda tile: _product._compiled(tile, ends), tried))
    chosen = (
        choose_greedy(rows, out_size, in_size) if name == "head" else choose(rows, out_size, in_size, name == "gate_up")
    )
    own = sorted((pair_us(tile), tile) for tile in tried)
    case = {"shape": shape, "product": name, "rows": rows, "library_us": pair_us(None)}
    return {**case, "chosen": chosen and (pair_us(chosen), chosen), "own": own}


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    for shape in options.shapes.split(","):
        for name in options.products.split(","):
            yield from ((shape, name, int(rows)) for rows in options.rows.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="16,64,128,256,384,512,768,1024")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--products", default="qkv,o,gate_up,down,head")
    parser.add_argument("--tiles", type=int, default=16, help="how many to try of each")
    parser.add_argument("--out", help="also write the figures as JSON")
    options = parser.parse_args()
    results = []
    for case in cases(options):
        result = measure(*case, options.tiles)
        results.append(result)
        best = "  ".join(f"{us:.2f} {tuple(tile)}" for us, tile in result["own"][:4])
        chosen = f"{result['chosen'][0]:.2f} {tuple(result['chosen'][1])}" if result["chosen"] else "library"
        print(
            f"{case[0]:5s} {case[1]:8s} {case[2]:5d} rows: library {result['library_us']:7.2f}  chosen {chosen}  best {best}",
            flush=True,
        )
        if options.out:
            with open(options.out, "w") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
