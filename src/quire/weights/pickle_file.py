"""Pickled checkpoints (.bin, .pt), read only when asked for with load_format="pt", and only as plain tensors."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the exception alone; nothing here unpickles

import torch
from torch import Tensor

from quire.errors import CheckpointError
from quire.weights.checkpoint import PICKLE_INDEX, Checkpoint, abbreviate, pickle_files, read_index


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a pickle file; its data stay on disk (mapped) until they are read, where the file's format allows it."""

    path: Path
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype


class PickleCheckpoint(Checkpoint):
    """All pickle files of a folder, or those that its index names."""

    tensors: dict[str, PickledTensor]

    def __init__(self, folder: Path) -> None:
        self.tensors = {}
        index = folder / PICKLE_INDEX
        files = (
            [folder / name for name in sorted(set(read_index(index).values()))]
            if index.is_file()
            else pickle_files(folder)
        )
        missing = [path.name for path in files if not path.is_file()]
        if missing or not files:
            raise CheckpointError(f"{folder}: missing {abbreviate(missing) if missing else 'any .bin or .pt file'}")
        for path in files:
            for name, value in _load(path).items():
                self.tensors[name] = PickledTensor(path, value)

    def read(self, name: str, buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.tensors[name].value.reshape(-1)


def _load(path: Path) -> dict[str, Tensor]:
    """A pickle file's tensors. The unpickler builds tensors alone (weights_only); sparse ones have their indices checked."""
    try:
        with torch.sparse.check_sparse_tensor_invariants(True):  # type: ignore[no-untyped-call]
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError:
        raise CheckpointError(f"{path} is refused: it holds more than plain tensors, or is corrupt") from None
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as tensors ({type(error).__name__}); download it again") from None
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(f"{path}: {str(name)[:100]!r} is not a dense tensor")
    return values
