"""Matrices as the copy engine sees them: tiles of 128 bytes a row, swizzled as the matrix instructions want them."""

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
    return _map(matrix.data_ptr(), matrix.dtype, tuple(matrix.shape), matrix.stride(0), tile_rows)


@lru_cache(maxsize=8192)
def _map(address: int, dtype: torch.dtype, shape: tuple[int, int], stride: int, tile_rows: int) -> TensorMap:
    room = ctypes.create_string_buffer(192)
    aligned = (ctypes.addressof(room) + 63) // 64 * 64
    code = _library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned), ELEMENTS[dtype], 2, ctypes.c_void_p(address), (ctypes.c_uint64 * 2)(shape[1], shape[0]),
        (ctypes.c_uint64 * 1)(2 * stride), (ctypes.c_uint32 * 2)(TILE_COLUMNS, tile_rows), (ctypes.c_uint32 * 2)(1, 1),
        0, SWIZZLE_128_BYTES, PROMOTE_TO_256_BYTES, 0,
    )  # fmt: skip
    _check(code, f"tensor map of {shape}")
    return TensorMap.from_buffer_copy(ctypes.string_at(aligned, 128))
