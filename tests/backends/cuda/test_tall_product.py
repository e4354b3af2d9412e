"""What the kernel for products of many rows takes, and that its launches are as the kernel reads them; it runs in tests/gpu."""

import ctypes

import pytest
import torch

from quire.backends.cuda import _tall_product
from quire.backends.cuda._tall_product import LEAST_ROWS, Sizes, macros, takes

SHARED_BYTES = 232_448  # what one program may use on an H200


def inputs(rows=LEAST_ROWS, outputs=512, inner=256, dtype=torch.bfloat16):
    return torch.zeros(rows, inner, dtype=dtype), torch.zeros(outputs, inner, dtype=dtype), None


def test_a_tile_can_be_launched():
    tile = _tall_product.GATED
    assert tile.shared_bytes <= SHARED_BYTES
    assert tile.columns <= 256 and tile.columns // 2 % 32 == 0 and tile.columns // max(2, tile.cluster) % 8 == 0
    assert set(map(type, macros(tile, True, False, True).values())) == {int}
    assert ctypes.sizeof(Sizes) == 16


def test_takes_many_rows_of_two_byte_types():
    assert takes(*inputs(), gated=True) and takes(*inputs(dtype=torch.float16), gated=True)


@pytest.mark.parametrize(
    "other", [{"rows": LEAST_ROWS - 1}, {"outputs": 520}, {"inner": 260}, {"dtype": torch.float32}], ids=str
)
def test_leaves_the_rest_to_others(other):
    assert not takes(*inputs(**other), gated=True)
