"""Launches of kernels/tall_product.cu: gate and up of a thousand rows or more, with the activation that joins them."""

from ctypes import Structure, c_int
from functools import cache

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._product import fits
from quire.backends.cuda._tensor_map import TILE_COLUMNS, boxes, tensor_map

ARCHITECTURE = "sm_90a"
LEAST_ROWS = 1024  # faster from here on than the matrix library's product and an activation of its own
GROUPS = 2  # warpgroups, of 64 rows each
ROWS, COLUMNS = 64 * GROUPS, 256  # of a tile; half of the columns are gate's
STAGES = 4  # tiles on their way
CLUSTER = 2  # programs that share a weight's tiles
BAND = 8  # clusters' rows that tiles go through before the next columns
NUM_THREADS = 128 * (GROUPS + 1)
# Tiles of both matrices, 64 x 128 results of each warpgroup, and barriers.
SHARED_BYTES = STAGES * (ROWS + COLUMNS) * 128 + GROUPS * 64 * 128 * 2 + 16 * STAGES


class Sizes(Structure):
    """As tall_product.cu has it."""

    _fields_ = [(name, c_int) for name in ("out_size", "k_tiles", "n_tiles", "m_tiles")]


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there are rows enough, and the copy engine can read these and write the result."""
    return x.shape[0] >= LEAST_ROWS and not (weight.shape[0] % 16 or weight.shape[1] % 8) and fits(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """quire.ops.linear_silu_mul."""
    num_rows, out_size = x.shape[0], weight.shape[0] // 2
    out = torch.empty(num_rows, out_size, dtype=x.dtype, device=x.device)
    kind = bias is not None, x.dtype == torch.float16
    if is_collecting():
        take(lambda: _compiled(*kind))
        return out
    n_tiles, m_tiles = -(-out_size // (COLUMNS // 2)), -(-num_rows // (ROWS * CLUSTER))
    sizes = Sizes(out_size, -(-x.shape[1] // TILE_COLUMNS), n_tiles, m_tiles)
    programs = min(num_processors() // CLUSTER, m_tiles * n_tiles) * CLUSTER
    out_map = boxes(out.data_ptr(), out.dtype, (out_size, num_rows), (out_size,), (TILE_COLUMNS, 64))
    _kernel(x.device, *kind).launch_early(
        (programs, 1, 1), (CLUSTER, 1, 1),
        (tensor_map(x, ROWS), tensor_map(weight, COLUMNS // max(2, CLUSTER)), out_map, bias, sizes),
    )  # fmt: skip
    return out


@cache
def _kernel(device: torch.device, has_bias: bool, half: bool) -> Kernel:
    return Kernel(device, _compiled(has_bias, half), "tall_product", NUM_THREADS, SHARED_BYTES)


def _compiled(has_bias: bool, half: bool) -> bytes:
    return _nvrtc.compile_kernel("tall_product.cu", macros(has_bias, half), ARCHITECTURE)


def macros(has_bias: bool, half: bool) -> dict[str, str | int]:
    """What kernels/tall_product.cu is compiled with."""
    return {
        "GROUPS": GROUPS, "BN": COLUMNS, "BN8": COLUMNS // 8, "STAGES": STAGES, "CLUSTER": CLUSTER, "BAND": BAND,
        "BIAS": int(has_bias), "F16": int(half), "SHARED_BYTES": SHARED_BYTES,
    }  # fmt: skip
