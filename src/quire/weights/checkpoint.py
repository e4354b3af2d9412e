"""Checkpoint: which files of a model folder hold its weights, and what tensors are in them, known before any is read."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quire.errors import CheckpointError
from quire.weights.safetensors_file import StoredTensor, read_chunks, read_header

SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state",
)  # what trainers leave beside the weights


class TensorInfo(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def path(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


class Checkpoint(ABC):
    """Named tensors of a model folder. `tensors` is complete before `read` is called."""

    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def read(self, name: str, buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The elements of a tensor in row-major pieces: (index of the first, host tensor [n] in the file's dtype).

        A piece may lie in `buffer` (uint8, host) and is valid until the next one is asked for.
        """


class SafetensorsCheckpoint(Checkpoint):
    """One safetensors file, or several with an index."""

    tensors: dict[str, StoredTensor]

    def __init__(self, folder: Path) -> None:
        self.tensors = {}
        files, index = safetensors_files(folder)
        for path in files:
            for name, tensor in read_header(path).items():
                if name in self.tensors:
                    raise CheckpointError(f"{path}: tensor {name!r} is also in {self.tensors[name].path}")
                self.tensors[name] = tensor
        lost = [name for name in index if name not in self.tensors]
        if lost:
            raise CheckpointError(f"{folder / SAFETENSORS_INDEX} lists tensors that its files lack: {abbreviate(lost)}")

    def read(self, name: str, buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
        return read_chunks(self.tensors[name], buffer)


def safetensors_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the weights, and the index's tensor -> file map ({} without an index).

    Raises CheckpointError that names what is missing, unfinished, or there only as pickle.
    """
    index_path = folder / SAFETENSORS_INDEX
    if index_path.is_file():
        index = read_index(index_path)
        return [_present(folder / name) for name in sorted(set(index.values()))], index
    single = folder / "model.safetensors"
    if single.is_file():
        return [single], {}
    shards = sorted(folder.glob("model-?????-of-?????.safetensors"))
    if shards:
        return [_present(folder / name) for name in _all_shards(shards[0].name)], {}
    others = [
        path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(("adapter", "consolidated"))
    ]
    if len(others) == 1:
        return others, {}
    raise _none_found(folder, others)


def read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index file: tensor name -> file name, each a plain name in the same folder."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} cannot be read or has no weight_map; download it again") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is not an object of file names")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path}: weight_map names the file {str(name)[:100]!r}, which is not in this folder")
    return weight_map


def abbreviate(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def pickle_files(folder: Path) -> list[Path]:
    """Files of `folder` that look like pickled weights."""
    found = [path for pattern in PICKLE_PATTERNS for path in sorted(folder.glob(pattern))]
    return [path for path in found if not path.name.startswith(NOT_WEIGHTS)]


def _all_shards(name: str) -> list[str]:
    total = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)", name)
    if total is None:
        return [name]
    count = int(total[2])
    return [f"{total[1]}-{i:05d}-of-{count:05d}{total[3]}" for i in range(1, count + 1)]


def _present(path: Path) -> Path:
    if path.is_file():
        return path
    parts = sorted(path.parent.glob(f"{path.name}*.incomplete"))
    state = f"only the unfinished download {parts[0].name} is there" if parts else "it is missing"
    raise CheckpointError(f"{path}: {state}; download the model again")


def _none_found(folder: Path, others: list[Path]) -> CheckpointError:
    if others:
        names = abbreviate([path.name for path in others])
        return CheckpointError(f"{folder}: cannot tell which of {names} is the model; there is no {SAFETENSORS_INDEX}")
    unfinished = sorted(path.name for path in folder.glob("*.incomplete"))
    if unfinished:
        return CheckpointError(
            f"{folder} holds unfinished downloads ({abbreviate(unfinished)}); download the model again"
        )
    pickles = [path.name for path in pickle_files(folder)]
    if pickles:
        return CheckpointError(
            f"{folder} holds only pickle files ({abbreviate(pickles)}), which can run code when they are opened: convert them to"
            " safetensors, or pass --load-format pt to read them as plain tensors"
        )
    return CheckpointError(f"{folder} holds no .safetensors file")


def host_buffer(num_bytes: int, pinned: bool) -> Tensor:
    """A staging buffer [num_bytes] uint8; pinned memory copies to a device without one more copy."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
