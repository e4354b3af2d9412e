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

from quire.backends.cuda import _nvrtc
from quire.backends.cuda import sample_tokens as cuda
from quire.ops.contract import Inputs
from quire.ops.sample_tokens import SPEC, _random_counts, sample_tokens
from quire.runner.device_sampler import make_scores

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
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


def random_inputs(seed: int) -> Inputs:
    """Rows of all kinds side by side: greedy ones, with and without filters, penalties, ties, padding; strides and sizes odd or not."""
    draw = torch.Generator().manual_seed(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(0, len(choices), (1,), generator=draw))]

    def of_rows(*choices: float) -> torch.Tensor:
        return torch.tensor(choices, dtype=torch.float64)[torch.randint(0, len(choices), (num_rows,), generator=draw)]

    dtype, vocab, num_rows = one_of(*DTYPES), one_of(40, 777, 2048, 8192, 8200, 20_000), one_of(1, 5, 9)
    wide = one_of(0, 8, 3)
    logits = torch.randn(num_rows, vocab + wide, generator=draw) * one_of(0.5, 3.0, 10.0) + one_of(0.0, -20.0)
    logits = logits.to(dtype)[:, :vocab]
    for row in range(num_rows):
        kind = one_of("as it is", "as it is", "steps", "equal", "one", "zeros")
        if kind == "steps":
            logits[row] = (logits[row] * 2).round() / 2
        elif kind == "equal":
            logits[row] = 1.5
        elif kind == "one":
            logits[row, vocab // 3] = 300.0
        elif kind == "zeros":
            logits[row] = logits[row].clamp(max=0.0) * one_of(1.0, -0.0)
    if num_rows == 9:
        logits[one_of(0, 4), one_of(0, vocab - 1)] = one_of(float("nan"), float("inf"), -float("inf"))
    controls = torch.stack(
        [
            of_rows(0.0, 1.0, 1.0, 0.2, 3.0), of_rows(0, 0, 1, 7, 50, 300, vocab), of_rows(1.0, 0.9, 0.3, 1e-6, 0.999),
            of_rows(0.0, 0.0, 0.05, 1.0, 1e-9), of_rows(1.0, 1.1, 0.7), of_rows(0.0, 0.3, -0.4), of_rows(0.0, 0.3, -2.0),
        ]
    )  # fmt: skip
    found = _random_counts(draw, num_rows + 1, vocab, torch.device("cpu")) if one_of(True, False) else {}
    num_top = one_of(-1, 0, 8, 32)
    return {
        "logits": logits, "controls": controls, "uniforms": torch.rand(2, num_rows, generator=draw, dtype=torch.float64),
        "step": torch.tensor([1]), "seen": found.get("seen"), "counts": found.get("counts"),
        "rows": torch.randperm(num_rows, generator=draw), "weigh_all": True,
        "scores": None if num_top < 0 else make_scores(2, num_rows + 1, num_top, torch.device("cpu")),
    }  # fmt: skip


def compare(run: Callable[..., Any], inputs: Inputs) -> None:
    """The same tokens, ranks and likeliest ones as the reference gives, and nearly the same log-probabilities."""
    others = {name: op_parity.to_device(value, "cpu") for name, value in inputs.items()}
    with op_parity.poisoned_memory():
        found = run(**inputs)
    assert torch.equal(found, sample_tokens(**others))
    if inputs["scores"] is not None:
        assert torch.equal(inputs["scores"][0], others["scores"][0])
        torch.testing.assert_close(inputs["scores"][1], others["scores"][1], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_own_inputs(run: Callable[..., Any], dtype: torch.dtype) -> None:
    for inputs in op_parity.cases(SPEC, dtype, seed=7):
        compare(run, inputs)


@pytest.mark.parametrize("seed", range(30))
def test_random_inputs(run: Callable[..., Any], seed: int) -> None:
    compare(run, random_inputs(seed))
