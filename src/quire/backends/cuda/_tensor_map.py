"""Tensors as the copy engine sees them: boxes of 128 bytes a row, swizzled as the matrix instructions want them."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from quire.backends.cuda._driver import _check, _library

TILE_COLUMNS = 64  # of 2 bytes
# Numbers of cuda.h.
ELEMENTS = {torch.float16: 6, torch.bfloat16: 9}
SWIZZLE_128_BYTES, PROMOTE_TO_256_BYTES = 3, 3


class TensorMap(ctypes.Structure):
    """Passed to kernels by value."""

    _fields_ = [("room", ctypes.c_char * 128)]


def tensor_map(matrix: Tensor, tile_rows: int) -> TensorMap:
    """Tiles of tile_rows x TILE_COLUMNS of `matrix` [rows, columns]; zeros where they reach beyond it. Rows begin at multiples of 16 bytes."""
    rows, columns = matrix.shape
    return boxes(matrix.data_ptr(), matrix.dtype, (columns, rows), (matrix.stride(0),), (TILE_COLUMNS, tile_rows))


@lru_cache(maxsize=8192)
def boxes(
    address: int, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> TensorMap:
    """Boxes of the tensor at `address`: sizes from the innermost dimension on, strides (in values) from the next on."""
    rank = len(sizes)
    room = ctypes.create_string_buffer(192)
    aligned = (ctypes.addressof(room) + 63) // 64 * 64
    code = _library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned), ELEMENTS[dtype], rank, ctypes.c_void_p(address), (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*(2 * s for s in strides)), (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank), 0, SWIZZLE_128_BYTES, PROMOTE_TO_256_BYTES, 0,
    )  # fmt: skip
    _check(code, f"tensor map of {sizes}")
    return TensorMap.from_buffer_copy(ctypes.string_at(aligned, 128))
