"""Launches of kernels/tall_product.cu: products of a thousand rows or more with a weight, with what follows them."""

from ctypes import Structure, c_int
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._product import fits
from quire.backends.cuda._tensor_map import TILE_COLUMNS, boxes, tensor_map

ARCHITECTURE = "sm_90a"
LEAST_ROWS = 1024  # faster from here on than the matrix library's product and an activation of its own


class TallTile(NamedTuple):
    """Macros of kernels/tall_product.cu: warpgroups of 64 rows each, columns, tiles on their way, programs that share a weight's tiles."""

    groups: int = 2
    columns: int = 256
    stages: int = 4
    cluster: int = 2
    band: int = 8  # clusters' rows that tiles go through before the next columns

    @property
    def rows(self) -> int:
        return 64 * self.groups

    @property
    def num_threads(self) -> int:
        return 128 * (self.groups + 1)

    @property
    def shared_bytes(self) -> int:
        """Tiles of both matrices, 64 x 128 results of each warpgroup, and barriers: SHARED_BYTES of the kernel."""
        return self.stages * (self.rows + self.columns) * 128 + self.groups * 64 * 128 * 2 + 16 * self.stages


GATED = TallTile()


class Sizes(Structure):
    """As tall_product.cu has it."""

    _fields_ = [(name, c_int) for name in ("out_size", "k_tiles", "n_tiles", "m_tiles")]


def takes(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> bool:
    """Whether there are rows enough, and the copy engine can read these and write the result."""
    out_size = weight.shape[0] // (1 + gated)
    return x.shape[0] >= LEAST_ROWS and not (out_size % 8 or weight.shape[1] % 8) and fits(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, tile: TallTile, gated: bool = False) -> Tensor:
    """x @ weight.T (+ bias), or quire.ops.linear_silu_mul of them."""
    num_rows, out_size = x.shape[0], weight.shape[0] // (1 + gated)
    out = torch.empty(num_rows, out_size, dtype=x.dtype, device=x.device)
    kind = tile, gated, bias is not None, x.dtype == torch.float16
    if is_collecting():
        take(lambda: _compiled(*kind))
        return out
    columns = tile.columns // (1 + gated)
    sizes = Sizes(
        out_size, -(-x.shape[1] // TILE_COLUMNS), -(-out_size // columns), -(-num_rows // (tile.rows * tile.cluster))
    )
    programs = min(num_processors() // tile.cluster, sizes.m_tiles * sizes.n_tiles) * tile.cluster
    out_map = boxes(out.data_ptr(), out.dtype, (out_size, num_rows), (out_size,), (32 if columns % 64 else 64, 64))
    _kernel(x.device, *kind).launch_early(
        (programs, 1, 1), (tile.cluster, 1, 1),
        (tensor_map(x, tile.rows), tensor_map(weight, tile.columns // max(2, tile.cluster)), out_map, bias, sizes),
    )  # fmt: skip
    return out


@cache
def _kernel(device: torch.device, tile: TallTile, gated: bool, has_bias: bool, half: bool) -> Kernel:
    return Kernel(_compiled(tile, gated, has_bias, half), "tall_product", tile.num_threads, tile.shared_bytes)


def _compiled(tile: TallTile, gated: bool, has_bias: bool, half: bool) -> bytes:
    return _nvrtc.compile_kernel("tall_product.cu", macros(tile, gated, has_bias, half), ARCHITECTURE)


def macros(tile: TallTile, gated: bool, has_bias: bool, half: bool) -> dict[str, str | int]:
    """What kernels/tall_product.cu is compiled with."""
    return {
        "GROUPS": tile.groups, "BN": tile.columns, "BN8": tile.columns // 8, "STAGES": tile.stages, "CLUSTER": tile.cluster,
        "BAND": tile.band, "GATED": int(gated), "BIAS": int(has_bias), "F16": int(half),
        "SHARED_BYTES": tile.shared_bytes,
    }  # fmt: skip
