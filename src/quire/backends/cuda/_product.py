"""Launches of kernels/product.cu: products of some rows with a weight, with what follows them."""

from ctypes import c_int
from functools import cache

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._product_tiles import Tile
from quire.backends.cuda._tensor_map import ELEMENTS, TILE_COLUMNS, tensor_map

ARCHITECTURE = "sm_90a"


@cache
def why_not() -> list[str]:
    """Reasons why the kernel cannot run here; empty = it can."""
    if not torch.cuda.is_available():
        return ["no CUDA device is visible"]
    major, minor = torch.cuda.get_device_capability()
    if major != 9:
        return [f"compute capability is {major}.{minor}; it is made for 9.0"]
    return [] if _nvrtc.library_path() else ["NVRTC, CUDA's run-time compiler, is not installed"]


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the copy engine can read these: x [T, K], weight [N, K], of one 2-byte type, rows that begin at multiples of 16 bytes."""
    return (
        x.dtype in ELEMENTS and x.dtype == weight.dtype and x.stride(1) == 1 and not x.stride(0) % 8
        and not (x.data_ptr() | weight.data_ptr()) % 16 and (bias is None or not bias.data_ptr() % 16)
    )  # fmt: skip


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile, gated: bool = False) -> Tensor:
    """x @ weight.T (+ bias), or quire.ops.linear_silu_mul of them."""
    out = torch.empty(x.shape[0], weight.shape[0] // (1 + gated), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, tile, gated, (out, None, None), out.shape[1])
    return out


def likeliest(x: Tensor, weight: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """The largest result of each row in each of P shares of the columns, NaN where one is not finite, and its column: [T, P] each."""
    per_processor = max(
        1, min(232_448 // (tile.shared_bytes + 1024), 2048 // (tile.num_threads + tile.rows * tile.columns // 64))
    )
    programs = max(1, num_processors() * per_processor // -(-x.shape[0] // tile.rows))
    programs = min(programs, -(-weight.shape[0] // tile.columns))
    values = torch.empty(x.shape[0], programs, dtype=torch.float32, device=x.device)
    columns = torch.empty(x.shape[0], programs, dtype=torch.int32, device=x.device)
    _launch(x, weight, None, tile, False, (None, values, columns), weight.shape[0], programs)
    return values, columns


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile, gated: bool,
    results: tuple[Tensor | None, Tensor | None, Tensor | None], out_size: int, programs: int | None = None,
) -> None:  # fmt: skip
    kind = tile, gated, programs is not None, bias is not None, x.dtype == torch.float16
    if is_collecting():
        take(lambda: _compiled(*kind))
        return
    columns = tile.columns // (1 + gated)
    num_tiles = -(-out_size // columns)
    grid = -(-x.shape[0] // tile.rows), programs or num_tiles, tile.split
    _kernel(x.device, *kind).launch_early(
        grid, (1, 1, tile.split),
        (
            tensor_map(x, tile.rows), tensor_map(weight, columns), bias, *results,
            c_int(x.shape[0]), c_int(out_size), c_int(-(-x.shape[1] // TILE_COLUMNS)), c_int(num_tiles),
        ),
    )  # fmt: skip


@cache
def _kernel(device: torch.device, tile: Tile, gated: bool, greedy: bool, has_bias: bool, half: bool) -> Kernel:
    return Kernel(_compiled(tile, gated, greedy, has_bias, half), "product", tile.num_threads, tile.shared_bytes)


def _compiled(tile: Tile, gated: bool, greedy: bool, has_bias: bool, half: bool) -> bytes:
    return _nvrtc.compile_kernel("product.cu", macros(tile, gated, greedy, has_bias, half), ARCHITECTURE)


def macros(tile: Tile, gated: bool, greedy: bool, has_bias: bool, half: bool) -> dict[str, str | int]:
    """What kernels/product.cu is compiled with."""
    return {
        "WGS": tile.groups, "MB": tile.blocks, "BN": tile.columns, "BN8": tile.columns // 8, "STAGES": tile.stages,
        "SPLIT": tile.split, "GATED": int(gated), "GREEDY": int(greedy), "BIAS": int(has_bias), "F16": int(half),
    }  # fmt: skip
