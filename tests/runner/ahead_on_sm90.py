"""Goes through the first steps of a Qwen2-shaped model as if an H200 were there, and prints as JSON what would be compiled.

Run as a script: Triton's driver, of which a process has one, is replaced. The kernels are compiled to machine code; nothing is launched.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from pretended_h200 import H200
from triton.compiler import CompiledKernel
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import shapes  # noqa: E402

from quire.backends.triton import _ahead  # noqa: E402
from quire.compilers import Compilers  # noqa: E402
from quire.config import EngineConfig  # noqa: E402
from quire.hf_config import HfConfig  # noqa: E402
from quire.models.registry import find_model  # noqa: E402
from quire.ops import registry  # noqa: E402
from quire.ops.ahead import Job, ahead  # noqa: E402
from quire.platform.cpu import CpuPlatform  # noqa: E402
from quire.runner.ahead import DrySteps, Need  # noqa: E402

NUM_APART = 4  # kernels that are given to another process


def compiled_apart(jobs: list[Job], make: Any) -> list[str]:
    """Kernels that another process compiled and this one found: name, whether Triton took it from its cache."""
    heard: list[dict[str, Any]] = []
    triton.knobs.compilation.listener = lambda **said: heard.append(said)
    _ahead._compile = make
    other = Compilers()
    answers = [other.ask(job.request or {}) for job in jobs]
    for job, answer in zip(jobs, answers, strict=True):
        if other.wait(answer):
            job.load()
    other.close()
    return [f"{said['src'].fn.__name__} {said['cache_hit']}" for said in heard]


def main() -> None:
    driver.set_active(H200())
    CompiledKernel.run = None  # loading needs a device
    for module in registry.implementations("triton").values():
        module.why_not = lambda: []
        for name, value in {
            "dependent": {"DEPENDENT": True, "launch_pdl": True},
            "shared_memory_bytes": 232_448,
        }.items():
            if hasattr(module, name):
                setattr(module, name, lambda value=value: value)
    folder = shapes.write_config("test", tempfile.mkdtemp())
    hf = HfConfig.from_dir(folder)
    model = find_model(hf)
    config = EngineConfig(
        model_dir=folder, model_name="test", device="cuda", dtype="bfloat16", max_model_len=512, block_size=16, max_num_seqs=8,
        max_num_batched_tokens=256,
    )  # fmt: skip
    found = ahead(*registry.resolve(("triton", "torch")))
    if found is None:
        sys.exit("no backend compiles")
    ops, collect = found
    jobs: dict[str, list[Any]] = {"first": [], "later": []}
    asked: list[Any] = []
    steps = DrySteps(model, model.Config.from_hf(hf), ops, config, CpuPlatform())
    with torch.inference_mode(), collect(asked.append):
        for need, step in steps:
            step()
            jobs["later" if need is Need.LATER else "first"] += asked
            asked.clear()
    found: dict[str, list[str]] = {"first": [], "later": [], "compiled": [], "again": []}
    make = _ahead._compile

    def compile_one(function: Any, *arguments: Any) -> None:
        found[part].append(function.__name__)
        if function.__name__ in sys.argv[1:]:
            make(function, *arguments)
            ((key, kernel),) = function.device_caches[0][0].items()
            found["compiled"].append(f"{kernel.name} {len(kernel.asm['cubin']) > 0} {key == arguments[0]}")

    _ahead._compile = compile_one
    for part in list(jobs):
        for job in jobs[part]:
            job.load()
    with torch.inference_mode(), collect(asked.append):
        for _, step in steps:
            step()  # a launch of a kernel that is there now would fail
    sys.argv[1:], part = [], "again"
    for job in asked:
        job.load()
    found["apart"] = compiled_apart(jobs["first"][:NUM_APART], make)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
