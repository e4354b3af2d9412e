"""Reads safetensors files without trusting them: the header is checked in full before a byte of data is.

Layout: 8 bytes, little-endian length L of the header; L bytes of JSON {name: {dtype, shape, data_offsets: [begin, end)}}; the data,
which the offsets cover without holes. Source: the format's own README (huggingface/safetensors).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from quire.errors import CheckpointError

MAX_HEADER_BYTES = 100 * 2**20
LENGTH_BYTES = 8
LFS_MAGIC = b"version https://git-lfs"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes [begin, begin + num_bytes) of the file at `path`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    Raises CheckpointError, naming the file and what is wrong with it, for anything but a whole and well-formed file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, data_begin = _header_json(file, path, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    tensors = {name: _entry(path, name, value, data_begin) for name, value in header.items() if name != "__metadata__"}
    _check_layout(path, tensors, data_begin, size)
    return tensors


def _header_json(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    start = file.read(LENGTH_BYTES)
    if (start + file.read(len(LFS_MAGIC))).startswith(LFS_MAGIC):
        raise CheckpointError(f"{path} is a git-lfs pointer of {size} bytes, not the file itself: run `git lfs pull`")
    if len(start) < LENGTH_BYTES:
        raise CheckpointError(
            f"{path} is truncated: it needs at least {LENGTH_BYTES} bytes, it has {size}; download it again"
        )
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is not a safetensors file: its header would be {length} bytes long")
    if LENGTH_BYTES + length > size:
        needed = LENGTH_BYTES + length
        raise CheckpointError(f"{path} is truncated: its header needs {needed} bytes, it has {size}; download it again")
    file.seek(LENGTH_BYTES)
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object")
    return header, LENGTH_BYTES + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(path: Path, name: str, value: Any, data_begin: int) -> StoredTensor:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(f"{where} has no dtype, shape or data_offsets")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _is_int_list(shape) or not _is_int_list(offsets) or len(offsets) != 2 or len(shape) > 16:
        raise CheckpointError(f"{where} has a bad shape or data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(f"{where} has the dtype {str(value['dtype'])[:40]!r}, which is not supported")
    num_bytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != num_bytes:
        found = offsets[1] - offsets[0]
        raise CheckpointError(f"{where} of shape {shape} needs {num_bytes} bytes, the header gives it {found}")
    return StoredTensor(path, dtype, tuple(shape), data_begin + offsets[0], num_bytes)


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_layout(path: Path, tensors: dict[str, StoredTensor], data_begin: int, size: int) -> None:
    end = data_begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].num_bytes)):
        if tensor.begin != end:
            raise CheckpointError(
                f"{path}: tensor {name!r} begins at byte {tensor.begin}, expected {end}: overlap or hole"
            )
        end += tensor.num_bytes
    if size < end:
        raise CheckpointError(f"{path} is truncated: it needs {end} bytes, it has {size}; download it again")
    if size > end:
        raise CheckpointError(f"{path} is corrupt: it needs {end} bytes, it has {size}; download it again")


def read_chunks(tensor: StoredTensor, buffer: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The tensor's elements in pieces: (index of the first element, elements [n]), each piece valid until the next is asked for.

    buffer  [bytes] uint8 on the host, holds one piece
    """
    host, item = memoryview(buffer.numpy()), tensor.dtype.itemsize  # type: ignore[arg-type]  # numpy arrays are buffers
    piece_bytes = buffer.numel() // item * item
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        for done in range(0, tensor.num_bytes, piece_bytes):
            count = min(piece_bytes, tensor.num_bytes - done)
            _read_exactly(file, host[:count], tensor)
            yield done // item, buffer[:count].view(tensor.dtype)


def _read_exactly(file: Any, view: memoryview, tensor: StoredTensor) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise CheckpointError(f"{tensor.path} became shorter while it was read")
        done += count
