"""The header parser: good files read back, anything else is a CheckpointError that names the file, before data is touched."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quire.errors import CheckpointError
from quire.weights.safetensors_file import MAX_HEADER_BYTES, read_chunks, read_header

TENSORS = {
    "a": torch.arange(24, dtype=torch.float32).view(2, 3, 4),
    "b": torch.randn(7, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
    "whole": torch.arange(5),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, str(path), metadata={"format": "pt"})
    return path


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def read_all(path: Path, buffer_bytes: int) -> dict[str, torch.Tensor]:
    buffer = torch.empty(buffer_bytes, dtype=torch.uint8)
    found = {}
    for name, stored in read_header(path).items():
        flat = torch.zeros(stored.num_bytes // stored.dtype.itemsize, dtype=stored.dtype)
        for first, piece in read_chunks(stored, buffer):
            flat[first : first + len(piece)] = piece
        found[name] = flat.view(stored.shape)
    return found


@pytest.mark.parametrize("buffer_bytes", [8, 13, 4096])
def test_tensors_read_back_in_pieces_of_any_size(good: Path, buffer_bytes: int) -> None:
    found = read_all(good, buffer_bytes)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": {**F32, "shape": [3]}}, b"8" * 8, "needs 12 bytes, the header gives it 8"),
        ({"x": {**F32, "shape": [2**62, 2**62]}}, b"8" * 8, "needs .* bytes"),
        ({"x": {**F32, "shape": [-2]}}, b"8" * 8, "bad shape"),
        ({"x": {**F32, "shape": [2.0]}}, b"8" * 8, "bad shape"),
        ({"x": {**F32, "shape": [True, 2]}}, b"8" * 8, "bad shape"),
        ({"x": {**F32, "data_offsets": [8, 0]}}, b"8" * 8, "gives it -8"),
        ({"x": {**F32, "data_offsets": [0]}}, b"8" * 8, "bad shape or data_offsets"),
        ({"x": {**F32, "dtype": "F9"}}, b"8" * 8, "dtype 'F9'"),
        ({"x": {**F32, "dtype": ["F32"]}}, b"8" * 8, "dtype"),
        ({"x": {"dtype": "F32"}}, b"", "no dtype, shape or data_offsets"),
        ({"x": 5}, b"", "no dtype, shape"),
        ({"x": F32, "y": F32}, b"8" * 8, "overlap or hole"),
        ({"x": {**F32, "data_offsets": [8, 16]}}, b"8" * 16, "overlap or hole"),
        ({"x": F32}, b"8" * 7, "truncated: it needs .* bytes, it has"),
        ({"x": F32}, b"8" * 9, "corrupt: it needs .* bytes, it has"),
        (b'{"x": ', b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"x": 1, "x": 2}', b"", "occurs twice"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_header_is_refused_by_name(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_header_too_long_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "long.safetensors", b"{}", length=MAX_HEADER_BYTES + 1)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(path)


def test_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(path)


def test_every_truncation_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for size in range(0, len(whole), 3):
        good.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            read_header(good)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(good: Path) -> None:
    stored = read_header(good)["a"]
    good.write_bytes(good.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="became shorter"):
        list(read_chunks(stored, torch.empty(64, dtype=torch.uint8)))


def test_mutants_are_refused_or_read_as_the_format_has_them(good: Path) -> None:
    """A random byte of the file is changed: either a clean refusal, or a file that the reference library accepts too."""
    whole, draw, accepted = good.read_bytes(), random.Random(5), 0
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(600):
        mutant = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            mutant[draw.randrange(header_end)] = draw.randrange(256)
        good.write_bytes(mutant)
        try:
            names = set(read_header(good))
        except CheckpointError:
            continue
        accepted += 1
        try:
            with safe_open(good, "pt") as reference:
                assert set(reference.keys()) == names
        except SafetensorError as error:
            assert "metadata" in str(error).lower()  # ours does not look into __metadata__
    assert accepted > 0
