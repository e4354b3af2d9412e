"""Which tiles a product of 2 to 1,024 rows gets: measured on an H200 over the sizes of Qwen2.5, bfloat16 (benchmarks/gpu_products.py)."""

from functools import cache
from math import log2
from typing import NamedTuple


class Tile(NamedTuple):
    """Macros of kernels/product.cu: 64 * groups * blocks rows, columns, tiles on their way.

    split  programs that share a sum; bulk: what they send each other goes in one piece
    share  programs with neighbouring columns that share what they read of x
    """

    groups: int
    blocks: int
    columns: int
    stages: int
    split: int
    bulk: bool = False
    share: int = 1

    @property
    def rows(self) -> int:
        return 64 * self.groups * self.blocks

    @property
    def num_threads(self) -> int:
        return 128 * self.groups + (128 if self.blocks > 1 else 32)

    @property
    def shared_bytes(self) -> int:
        """Tiles of both matrices, the sums received from others, and room to begin at a multiple of 1,024 bytes."""
        tiles = self.stages * (self.rows + self.columns) * 128
        sums = self.rows * (self.columns + (40 - self.columns % 32) % 32) * 4 if self.split > 1 else 0
        return tiles + sums + 1024


Size = tuple[int, int]  # outputs, inputs; of gated products outputs of both halves
LEAST_JOINED = 9  # rows; fewer are one persistent kernel, or left to products of their own
LIKE = 0.4  # sizes that differ by less than 2 ** LIKE in each direction get the same tiles
# Most rows -> size -> tile. What is not here is left to the matrix library, which was as fast or faster.
PLAIN: dict[int, dict[Size, Tile]] = {
    16: {
        (1152, 896): Tile(1, 1, 48, 7, 2),
        (896, 896): Tile(1, 1, 48, 7, 2),
        (896, 4864): Tile(1, 1, 64, 10, 8),
        (2048, 1536): Tile(1, 1, 80, 6, 4),
        (1536, 1536): Tile(1, 1, 64, 6, 4),
        (1536, 8960): Tile(1, 1, 64, 11, 4),
        (3584, 18944): Tile(1, 1, 136, 7, 4),
    },
    64: {
        (1152, 896): Tile(1, 1, 48, 7, 2),
        (896, 896): Tile(1, 1, 48, 7, 2),
        (896, 4864): Tile(1, 1, 64, 10, 8),
        (2048, 1536): Tile(1, 1, 72, 6, 4),
        (1536, 1536): Tile(1, 1, 64, 6, 4),
        (1536, 8960): Tile(1, 1, 64, 11, 4),
        (4608, 3584): Tile(1, 1, 72, 11, 2),
        (3584, 3584): Tile(1, 1, 56, 12, 2),
        (3584, 18944): Tile(1, 1, 120, 7, 4),
    },
    128: {
        (1152, 896): Tile(2, 1, 32, 7, 2),
        (896, 896): Tile(2, 1, 32, 7, 2),
        (896, 4864): Tile(2, 1, 32, 9, 4),
        (2048, 1536): Tile(2, 1, 72, 6, 4),
        (1536, 1536): Tile(2, 1, 64, 6, 4),
        (1536, 8960): Tile(2, 1, 56, 7, 4),
        (3584, 18944): Tile(2, 1, 120, 4, 4),
    },
    256: {
        (1152, 896): Tile(2, 1, 40, 7, 2),
        (896, 896): Tile(1, 1, 32, 12, 1, share=2),
        (896, 4864): Tile(2, 1, 64, 7, 4, True, 2),
        (1536, 1536): Tile(2, 1, 48, 8, 2),
    },
}
GATED: dict[int, dict[Size, Tile]] = {
    64: {
        (9728, 896): Tile(1, 1, 80, 11, 1),
        (17920, 1536): Tile(1, 1, 144, 8, 1),
        (37888, 3584): Tile(1, 1, 144, 3, 1),
    },
    128: {
        (9728, 896): Tile(2, 1, 80, 8, 1),
        (17920, 1536): Tile(2, 1, 144, 6, 1),
        (37888, 3584): Tile(2, 1, 144, 6, 1),
    },
    256: {
        (9728, 896): Tile(4, 1, 80, 4, 1),
        (17920, 1536): Tile(2, 2, 144, 4, 1),
        (37888, 3584): Tile(2, 2, 144, 3, 1),
    },
    384: {(17920, 1536): Tile(2, 1, 208, 4, 1)},
    512: {
        (9728, 896): Tile(2, 2, 160, 4, 1),
        (17920, 1536): Tile(2, 2, 144, 4, 1),
        (37888, 3584): Tile(2, 2, 192, 3, 1),
    },
    768: {(9728, 896): Tile(4, 1, 112, 4, 1), (17920, 1536): Tile(2, 2, 144, 4, 1)},
    1024: {(9728, 896): Tile(2, 2, 160, 4, 1), (17920, 1536): Tile(2, 2, 192, 3, 1)},
}
# Products of which only the likeliest output is kept: long, so that the tile hardly depends on the size.
GREEDY: dict[int, Tile] = {
    64: Tile(1, 1, 192, 6, 1),
    128: Tile(2, 1, 192, 5, 1),
    256: Tile(4, 1, 128, 4, 1),
    512: Tile(2, 2, 192, 3, 1),
    1024: Tile(2, 2, 160, 4, 1),
}
LEAST_GREEDY_OUTPUTS = 32_768


class Joined(NamedTuple):
    """Tiles of a layer's products where they do their neighbours' norms; no tile for one before a norm = both are done by themselves."""

    qkv: Tile
    out: Tile | None
    gate_up: Tile
    down: Tile | None


# Most rows -> outputs of qkv, hidden size, inner size -> tiles, measured in chains of whole layers. What is not here runs layer by layer.
JOINED: dict[int, dict[tuple[int, int, int], Joined]] = {
    64: {
        (1152, 896, 4864): Joined(
            Tile(1, 1, 48, 7, 2), Tile(1, 1, 48, 7, 2), Tile(1, 1, 80, 11, 1), Tile(1, 1, 64, 10, 8)
        ),
        (2048, 1536, 8960): Joined(
            Tile(1, 1, 72, 6, 4), Tile(1, 1, 64, 6, 4), Tile(1, 1, 144, 8, 1), Tile(1, 1, 64, 11, 4)
        ),
        (4608, 3584, 18944): Joined(
            Tile(1, 1, 72, 11, 2), Tile(1, 1, 56, 12, 2), Tile(1, 1, 144, 3, 1), Tile(1, 1, 120, 7, 4)
        ),
    },
    128: {
        (1152, 896, 4864): Joined(
            Tile(1, 1, 48, 7, 2), Tile(1, 1, 64, 7, 2, True, 2), Tile(2, 1, 80, 8, 1), Tile(1, 1, 64, 10, 4, True)
        ),
        (2048, 1536, 8960): Joined(
            Tile(1, 1, 72, 6, 2, True, 2),
            Tile(1, 1, 64, 7, 2, True, 2),
            Tile(2, 1, 144, 6, 1),
            Tile(2, 1, 64, 7, 4, True, 2),
        ),
    },
    256: {
        (1152, 896, 4864): Joined(
            Tile(1, 1, 48, 12, 1, share=2),
            Tile(1, 1, 64, 7, 2, True, 2),
            Tile(4, 1, 80, 4, 1),
            Tile(2, 1, 64, 7, 4, True, 2),
        ),
    },
}


@cache
def choose(num_rows: int, out_size: int, in_size: int, gated: bool) -> Tile | None:
    """The tile for a product; None = the matrix library is to do it."""
    table = GATED if gated else PLAIN
    bound = min((rows for rows in table if rows >= num_rows), default=None)
    if bound is None or out_size % 8 or in_size % 8:
        return None

    def distance(size: Size) -> float:
        return max(abs(log2(out_size / size[0])), abs(log2(in_size / size[1])))

    nearest = min(table[bound], key=distance)
    tile = table[bound][nearest]
    return tile if distance(nearest) < LIKE and in_size >= 128 * tile.split else None


@cache
def choose_joined(num_rows: int, qkv_size: int, hidden_size: int, heads_size: int, inner_size: int) -> Joined | None:
    """Tiles for products that do their neighbours' norms; None = each is to be done by itself. heads_size: inputs of the product after attention."""
    bound = min((rows for rows in JOINED if rows >= num_rows), default=None)
    if bound is None or num_rows < LEAST_JOINED or (qkv_size | hidden_size | heads_size | inner_size) % 8:
        return None
    sizes = qkv_size, hidden_size, inner_size

    def distance(known: tuple[int, int, int]) -> float:
        return max(abs(log2(a / b)) for a, b in zip(sizes, known, strict=True))

    nearest = min(JOINED[bound], key=distance)
    joined = JOINED[bound][nearest]
    inputs = zip(joined, (hidden_size, heads_size, hidden_size, inner_size), strict=True)
    fitting = all(tile is None or size >= 128 * tile.split for tile, size in inputs)
    return joined if distance(nearest) < LIKE and fitting else None


@cache
def choose_greedy(num_rows: int, out_size: int, in_size: int) -> Tile | None:
    """The same for a product of which only the likeliest output is kept."""
    bound = min((rows for rows in GREEDY if rows >= num_rows), default=None)
    if bound is None or out_size % 8 or in_size % 8 or out_size < LEAST_GREEDY_OUTPUTS:
        return None
    return GREEDY[bound]
