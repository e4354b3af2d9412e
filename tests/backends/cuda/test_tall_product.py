"""What the kernel for gate and up of many rows takes, and that its launches are as the kernel reads them; it runs in tests/gpu."""

import ctypes

import pytest
import torch

from quire.backends.cuda import _tall_product as tall


def inputs(rows=tall.LEAST_ROWS, outputs=512, inner=256, dtype=torch.bfloat16):
    return torch.zeros(rows, inner, dtype=dtype), torch.zeros(outputs, inner, dtype=dtype), None


def test_it_can_be_launched():
    assert tall.SHARED_BYTES <= 232_448  # what one program may use on an H200
    assert tall.ROWS <= 256 and tall.COLUMNS <= 256 and tall.COLUMNS // 2 % 64 == 0  # boxes, and chunks of results
    assert set(map(type, tall.macros(True, False).values())) == {int}
    assert ctypes.sizeof(tall.Sizes) == 16


def test_takes_many_rows_of_two_byte_types():
    assert tall.takes(*inputs()) and tall.takes(*inputs(dtype=torch.float16))


@pytest.mark.parametrize(
    "other", [{"rows": tall.LEAST_ROWS - 1}, {"outputs": 520}, {"inner": 260}, {"dtype": torch.float32}], ids=str
)
def test_leaves_the_rest_to_others(other):
    assert not tall.takes(*inputs(**other))
