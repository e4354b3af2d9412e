"""From a checkpoint to a model's parameters: everything is checked first, then read piece by piece into place."""

import logging
import math
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quire.errors import CheckpointError
from quire.weights.checkpoint import Checkpoint, SafetensorsCheckpoint, abbreviate, host_buffer
from quire.weights.pickle_file import PickleCheckpoint
from quire.weights.weight_map import WeightMap

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**20  # read and copied at once; the host memory that loading needs beside the model, a reader
NUM_READERS = 4  # to a device; to host memory one reader copies as fast as the machine can
DUMMY_STD = 0.02
WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Assignment:
    """Checkpoint tensor `source` fills rows [first_row, first_row + shape[0]) of `parameter`."""

    source: str
    parameter: str
    first_row: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightPlan:
    """What will be read into what; made and checked without allocating anything. `checkpoint` None = random weights."""

    checkpoint: Checkpoint | None
    assignments: list[Assignment]


def plan_weights(model: nn.Module, weights: WeightMap, folder: Path, load_format: str, tied: bool) -> WeightPlan:
    """Reads the checkpoint's headers and matches them with the model's parameters (which may be on meta).

    Raises CheckpointError for a bad file and for missing, mis-shaped and unknown tensors.
    """
    if load_format == "dummy":
        return WeightPlan(None, [])
    checkpoint = PickleCheckpoint(folder) if load_format == "pt" else SafetensorsCheckpoint(folder)
    found = {weights.canonical(name): name for name in checkpoint.tensors}
    wanted = _assignments(model, weights)
    missing = [a.source for a in wanted if a.source not in found]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing from the checkpoint: {abbreviate(missing)}"
        )
    _check_shapes(checkpoint, wanted, found)
    known = {a.source for a in wanted} | ({"lm_head.weight"} if tied else set())
    unknown = [name for name in found if name not in known and not weights.ignored(name)]
    if unknown:
        raise CheckpointError(f"{folder}: {len(unknown)} tensors have no place in this model: {abbreviate(unknown)}")
    return WeightPlan(checkpoint, [Assignment(found[a.source], a.parameter, a.first_row, a.shape) for a in wanted])


def _assignments(model: nn.Module, weights: WeightMap) -> list[Assignment]:
    wanted = []
    for name, parameter in model.named_parameters():
        sources = weights.sources(name)
        module = model.get_submodule(name.rpartition(".")[0])
        rows = getattr(module, "shard_sizes", None) or (parameter.shape[0],)
        first_row = 0
        for source, num_rows in zip(sources, rows, strict=True):
            wanted.append(Assignment(source, name, first_row, (num_rows, *parameter.shape[1:])))
            first_row += num_rows
    return wanted


def _check_shapes(checkpoint: Checkpoint, wanted: list[Assignment], found: dict[str, str]) -> None:
    wrong = []
    for a in wanted:
        info = checkpoint.tensors[found[a.source]]
        if info.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{info.path}: {a.source} has the dtype {info.dtype}, which is not a plain weight")
        if info.shape != a.shape:
            wrong.append(f"{a.source} is {list(info.shape)} in {info.path.name}, config.json makes it {list(a.shape)}")
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors have another shape than config.json says: {abbreviate(wrong)}")


def load_weights(model: nn.Module, plan: WeightPlan, device: torch.device, seed: int = 0) -> None:
    """Allocates the model's parameters on `device` and fills them; the model was built on meta.

    Host memory beside the model itself: PIECE_BYTES a reader.
    """
    start = time.perf_counter()
    _allocate(model, device)
    if plan.checkpoint is None:
        _fill_randomly(model, seed)
    else:
        _read_all(model, plan.checkpoint, plan.assignments, device)
    for module in model.modules():
        fill_buffers = getattr(module, "fill_buffers", None)
        if fill_buffers is not None:
            fill_buffers(device)
    seconds = time.perf_counter() - start
    logger.info("Loading weights took %.2f seconds", seconds, extra={"phase": "weights", "seconds": seconds})


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Puts uninitialised tensors on `device` in place of those on meta. nn.Module.to_empty would do, but imports half of torch's
    compiler for a tensor on meta, which takes as long as the rest of torch."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent=False)


def _read_all(model: nn.Module, checkpoint: Checkpoint, assignments: list[Assignment], device: torch.device) -> None:
    parameters = dict(model.named_parameters())
    on_host = device.type == "cpu"
    readers = 1 if on_host else NUM_READERS

    def read_share(reader: int) -> None:
        buffer = host_buffer(PIECE_BYTES, pinned=not on_host)
        for a in assignments[reader::readers]:
            rows = parameters[a.parameter].data[a.first_row : a.first_row + a.shape[0]]
            _fill(rows.view(-1), checkpoint, a.source, buffer)

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read_share, range(readers)))


def _fill(flat: Tensor, checkpoint: Checkpoint, source: str, buffer: Tensor) -> None:
    for first, piece in checkpoint.read(source, buffer):
        flat[first : first + piece.numel()].copy_(piece)  # casts to the parameter's dtype


def _fill_randomly(model: nn.Module, seed: int) -> None:
    """Random weights that keep activations finite: norms are ones, everything else uniform with standard deviation DUMMY_STD.

    Each parameter's stream is seeded by its name too, so that the values do not depend on the order of the others.
    """
    norms = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__.endswith("Norm")}
    for name, parameter in model.named_parameters():
        if name in norms:
            parameter.data.fill_(1.0)
            continue
        generator = torch.Generator(device=parameter.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        bound = DUMMY_STD * math.sqrt(3.0)
        parameter.data.uniform_(-bound, bound, generator=generator)
