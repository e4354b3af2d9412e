"""Launches of kernels/product.cu: products of some rows with a weight, with what follows them and what comes before."""

from ctypes import c_float, c_int
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._product_tiles import Tile
from quire.backends.cuda._tensor_map import ELEMENTS, TILE_COLUMNS, tensor_map

ARCHITECTURE = "sm_90a"


class Undivided(NamedTuple):
    """Rows on which a root-mean-square norm is half done: products divide what they make of them.

    values   [T, K], the rows times the norm's weight
    squares  [P, T] fp32: sums of squares of P parts of each row, before the weight
    eps      of the norm
    """

    values: Tensor
    squares: Tensor
    eps: float


class Ends(NamedTuple):
    """What a product does besides multiplying; see kernels/product.cu for the words."""

    gated: bool = False
    greedy: bool = False
    bias: bool = False
    normed: bool = False
    add: bool = False
    half: bool = False


class _Outputs(NamedTuple):
    """Where results go; None = there are none of that kind."""

    out: Tensor | None = None
    best_values: Tensor | None = None
    best_columns: Tensor | None = None
    residual: Tensor | None = None
    gains: Tensor | None = None
    squares: Tensor | None = None


@cache
def why_not() -> list[str]:
    """Reasons why the kernel cannot run here; empty = it can."""
    return _nvrtc.why_not(least=(9, 0), below=(10, 0))  # sm_90a is for these alone


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the copy engine can read these: x [T, K], weight [N, K], of one 2-byte type, rows that begin at multiples of 16 bytes."""
    return (
        x.dtype in ELEMENTS and x.dtype == weight.dtype and x.stride(1) == 1 and not x.stride(0) % 8
        and not (x.data_ptr() | weight.data_ptr()) % 16 and (bias is None or not bias.data_ptr() % 16)
    )  # fmt: skip


def multiply(x: Tensor | Undivided, weight: Tensor, bias: Tensor | None, tile: Tile, gated: bool = False) -> Tensor:
    """x @ weight.T (+ bias), or quire.ops.linear_silu_mul of them."""
    rows = x.values if isinstance(x, Undivided) else x
    out = torch.empty(rows.shape[0], weight.shape[0] // (1 + gated), dtype=rows.dtype, device=rows.device)
    _launch(x, weight, bias, tile, _Outputs(out), out.shape[1], gated=gated)
    return out


def add(x: Tensor, weight: Tensor, tile: Tile, residual: Tensor, gains: Tensor, eps: float) -> Undivided:
    """residual += x @ weight.T, and the norm of that with the weight `gains`, half done. residual [T, N] contiguous."""
    parts = _num_tiles(weight.shape[0], tile.columns, tile.share)
    squares = torch.empty(parts, x.shape[0], dtype=torch.float32, device=x.device)
    values = torch.empty_like(residual)
    outputs = _Outputs(values, residual=residual, gains=gains, squares=squares)
    _launch(x, weight, None, tile, outputs, weight.shape[0])
    return Undivided(values, squares, eps)


def likeliest(x: Tensor, weight: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """The largest result of each row in each of P shares of the columns, NaN where one is not finite, and its column: [T, P] each."""
    per_processor = max(
        1, min(232_448 // (tile.shared_bytes + 1024), 2048 // (tile.num_threads + tile.rows * tile.columns // 64))
    )
    programs = max(1, num_processors() * per_processor // -(-x.shape[0] // tile.rows))
    programs = min(programs, -(-weight.shape[0] // tile.columns))
    values = torch.empty(x.shape[0], programs, dtype=torch.float32, device=x.device)
    columns = torch.empty(x.shape[0], programs, dtype=torch.int32, device=x.device)
    _launch(x, weight, None, tile, _Outputs(None, values, columns), weight.shape[0], programs)
    return values, columns


def _launch(
    x: Tensor | Undivided, weight: Tensor, bias: Tensor | None, tile: Tile, outputs: _Outputs, out_size: int,
    programs: int | None = None, gated: bool = False,
) -> None:  # fmt: skip
    rows, squares, eps = x if isinstance(x, Undivided) else (x, None, 0.0)
    ends = Ends(
        gated, programs is not None, bias is not None, squares is not None, outputs.residual is not None,
        rows.dtype == torch.float16,
    )  # fmt: skip
    if is_collecting():
        take(lambda: _compiled(tile, ends))
        return
    columns = tile.columns // (1 + gated)
    num_tiles = _num_tiles(out_size, columns, tile.share)
    grid = -(-rows.shape[0] // tile.rows), programs or num_tiles, tile.split
    num_parts = 0 if squares is None else squares.shape[0]
    _kernel(rows.device, tile, ends).launch_early(
        grid, (1, tile.share, tile.split),
        (
            tensor_map(rows, tile.rows // tile.share), tensor_map(weight, columns), bias, *outputs[:3],
            c_int(rows.shape[0]), c_int(out_size), c_int(-(-rows.shape[1] // TILE_COLUMNS)), c_int(num_tiles),
            squares, c_int(num_parts), c_float(1.0 / rows.shape[1]), c_float(eps), *outputs[3:],
        ),
    )  # fmt: skip


def _num_tiles(out_size: int, columns: int, share: int) -> int:
    """Tiles along the columns, as many as whole clusters have."""
    return -(-out_size // (columns * share)) * share


@cache
def _kernel(device: torch.device, tile: Tile, ends: Ends) -> Kernel:
    threads = tile.num_threads + (32 if ends.normed and tile.blocks == 1 else 0)
    return Kernel(device, _compiled(tile, ends), "product", threads, tile.shared_bytes)


def _compiled(tile: Tile, ends: Ends) -> bytes:
    return _nvrtc.compile_kernel("product.cu", macros(tile, ends), ARCHITECTURE)


def macros(tile: Tile, ends: Ends) -> dict[str, str | int]:
    """What kernels/product.cu is compiled with."""
    return {
        "WGS": tile.groups, "MB": tile.blocks, "BN": tile.columns, "BN8": tile.columns // 8, "STAGES": tile.stages, "SPLIT": tile.split,
        "BULK": int(tile.bulk), "SHARE": tile.share, "GATED": int(ends.gated), "GREEDY": int(ends.greedy), "BIAS": int(ends.bias), "NORMED": int(ends.normed),
        "ADD": int(ends.add), "F16": int(ends.half),
    }  # fmt: skip
