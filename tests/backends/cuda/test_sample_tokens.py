"""The sampling kernels run on the CPU, their threads as fibers (on_cpu/ptx.cuh), against the operator's reference."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import op_parity
import pytest
import torch
from sampling_inputs import DTYPES, compare, equal_inputs, random_inputs

from quire.backends.cuda import _nvrtc
from quire.backends.cuda import sample_tokens as cuda
from quire.ops.sample_tokens import SPEC

HERE = Path(__file__).parent


class Emulated:
    """Stands in for a Kernel."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.library, self.name = library, name

    def launch_early(self, grid: tuple[int, int, int], cluster: tuple[int, int, int], arguments: tuple[Any]) -> None:
        self.library.launch(self.name.encode(), grid[0], grid[1], ctypes.byref(arguments[0]))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("kernels")
    for source in (*_nvrtc.KERNELS.glob("sample_*.cu*"), _nvrtc.KERNELS / "dependent.cuh", *HERE.glob("on_cpu/*")):
        shutil.copy(source, folder)
    made: dict[torch.dtype, ctypes.CDLL] = {}

    def library(dtype: torch.dtype) -> ctypes.CDLL:
        if dtype not in made:
            path = folder / f"{str(dtype)[6:]}.so"
            options = [f"-D{name}={value}" for name, value in cuda.macros(dtype).items()]
            command = ["g++", "-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-w", *options]
            subprocess.run([*command, folder / "sample_tokens.cc", "-o", path], check=True)
            made[dtype] = ctypes.CDLL(str(path))
        return made[dtype]

    return library


@pytest.fixture
def run(build: Callable[[torch.dtype], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    names = ("survey", "weigh", "choose")
    monkeypatch.setattr(cuda, "_kernels", lambda _, dtype: [Emulated(build(dtype), name) for name in names])
    yield cuda.run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_own_inputs(run: Callable[..., Any], dtype: torch.dtype) -> None:
    for inputs in op_parity.cases(SPEC, dtype, seed=7):
        compare(run, inputs)


@pytest.mark.parametrize("seed", range(30))
def test_random_inputs(run: Callable[..., Any], seed: int) -> None:
    compare(run, random_inputs(seed))


def test_more_equal_groups_than_are_listed(run: Callable[..., Any]) -> None:
    compare(run, equal_inputs(2048 * 128 + 5000))
