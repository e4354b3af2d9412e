"""The tables of tiles for products: each can be launched, and what is asked for lies in them or is left to the matrix library."""

import pytest

from quire.backends.cuda._product import Ends, macros
from quire.backends.cuda._product_tiles import (
    GATED,
    GREEDY,
    JOINED,
    LEAST_JOINED,
    PLAIN,
    Tile,
    choose,
    choose_greedy,
    choose_joined,
)

SHARED_BYTES = 232_448 - 1024  # what a program may have on an H200, less what the kernel keeps outside of its tiles
TILES = [
    *((tile, False, rows) for rows, sizes in PLAIN.items() for tile in sizes.values()),
    *((tile, True, rows) for rows, sizes in GATED.items() for tile in sizes.values()),
    *((tile, False, rows) for rows, tile in GREEDY.items()),
    *(
        (tile, name == "gate_up", rows)
        for rows, sizes in JOINED.items()
        for tiles in sizes.values()
        for name, tile in tiles._asdict().items()
        if tile
    ),
]


@pytest.mark.parametrize("tile, gated, rows", TILES, ids=str)
def test_a_tile_can_be_launched(tile: Tile, gated: bool, rows: int):
    assert tile.shared_bytes <= SHARED_BYTES and tile.num_threads <= 1024
    assert (
        tile.columns % (16 if gated else 8) == 0 and tile.columns <= 256
    )  # groups of 8 rows of both halves of a weight's tile
    assert tile.split in (1, 2, 4, 8) and tile.rows % (8 * tile.split) == 0
    assert tile.rows <= 256 and (tile.split == 1 or tile.blocks == 1)
    assert tile.split * tile.share <= 8 and tile.rows % (8 * tile.share) == 0
    # Sums sent in one piece are gathered where tiles were.
    assert not tile.bulk or tile.stages * (tile.rows + tile.columns) * 128 >= 4 * tile.rows * (tile.columns + 32)
    # Sums are kept in registers: 65,536 a multiprocessor, of which a producer group gives some away where there is one.
    assert tile.blocks * tile.columns // 2 <= (208 if tile.blocks > 1 else 65_536 // tile.num_threads - 32)


def test_macros_are_whole_numbers_that_fit_together():
    for tile, gated, _ in TILES:
        given = macros(tile, Ends(gated=gated, bias=True))
        assert given["BN8"] * 8 == given["BN"] and set(map(type, given.values())) == {int}


def test_tiles_of_measured_sizes_are_found_from_the_next_larger_number_of_rows():
    assert choose(2, 1152, 896, False) == choose(16, 1152, 896, False) == PLAIN[16][1152, 896]
    assert choose(65, 1152, 896, False) == PLAIN[128][1152, 896]
    assert choose(200, 9728, 896, True) == GATED[256][9728, 896]
    assert choose_greedy(300, 151_936, 896) == GREEDY[512]


def test_sizes_near_measured_ones_get_their_tiles_and_others_the_library():
    assert choose(64, 1280, 1024, False) == PLAIN[64][1152, 896]
    assert choose(64, 8192, 8192, False) is None
    assert choose(1025, 17_920, 1536, True) is None and choose(257, 1152, 896, False) is None
    assert choose(64, 1153, 896, False) is None, "rows of the result would begin at odd places"
    assert choose_greedy(64, 1000, 896) is None and choose_greedy(1025, 151_936, 896) is None


def test_joined_products_are_those_of_measured_decoders():
    assert (
        choose_joined(64, 1152, 896, 896, 4864)
        == choose_joined(LEAST_JOINED, 1152, 896, 896, 4864)
        == JOINED[64][1152, 896, 4864]
    )
    assert choose_joined(65, 1152, 896, 896, 4864) == JOINED[128][1152, 896, 4864]
    assert choose_joined(64, 1280, 1024, 1024, 4864) == JOINED[64][1152, 896, 4864], "sizes near to measured ones"
    assert (
        choose_joined(LEAST_JOINED - 1, 1152, 896, 896, 4864) is None
        and choose_joined(2000, 1152, 896, 896, 4864) is None
    )
    assert choose_joined(64, 6144, 4096, 4096, 14_336) is None
    assert choose_joined(64, 1152, 896, 900, 4864) is None, "rows of the heads would begin at odd places"
