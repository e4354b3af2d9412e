"""Goes through steps of many sizes as if an H200 were there, and prints as JSON the kernels that DrySteps does not know of.

Run as a script, with a shape of benchmarks/shapes.py: Triton's driver, of which a process has one, is replaced. Nothing is compiled.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pretended_h200 import H200
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import shapes  # noqa: E402

from quire.backends.triton import _ahead  # noqa: E402
from quire.config import EngineConfig  # noqa: E402
from quire.hf_config import HfConfig  # noqa: E402
from quire.layers.build import Build  # noqa: E402
from quire.models.registry import find_model  # noqa: E402
from quire.ops import registry  # noqa: E402
from quire.ops.ahead import Job, ahead  # noqa: E402
from quire.platform.cpu import CpuPlatform  # noqa: E402
from quire.runner.ahead import DrySteps, _lend_memory, _prompt_step  # noqa: E402
from quire.runner.prepare import narrows  # noqa: E402

TOKENS = (40, 300, 1024)
SEQUENCES = (1, 3, 9, 16, 24, 48, 100, 128, 193, 256, 300, 512, 700, 1000)


def pretend() -> None:
    """Every operator of both backends takes this machine for an H200."""
    driver.set_active(H200())
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    facts = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232_448)
    torch.cuda.get_device_properties = lambda *_: facts
    for backend in ("cuda", "triton"):
        for module in registry.implementations(backend).values():
            module.why_not = lambda: []
    _ahead._request = lambda function, asked: {"name": f"{function.__name__} {asked['specialization_data']}"}


def kernel(job: Job) -> str:
    """What tells it from others."""
    if job.request is not None:
        return str(job.request["name"])
    load: Any = job.load
    return f"{load.__qualname__} {[cell.cell_contents for cell in load.__closure__ or ()]}"


def main() -> None:
    pretend()
    shape, folder = sys.argv[1], tempfile.mkdtemp()
    shapes.SHAPES[shape]["vocab_size"] = 4096
    hf = HfConfig.from_dir(shapes.write_config(shape, folder))
    model = find_model(hf)
    config = EngineConfig(
        model_dir=folder, model_name=shape, device="cuda", dtype="bfloat16", max_model_len=16_384, block_size=16, max_num_seqs=1024,
        max_num_batched_tokens=16_384,
    )  # fmt: skip
    found = ahead(*registry.resolve(("cuda", "triton", "torch")))
    if found is None:
        sys.exit("no backend compiles")
    ops, collect = found
    sizes = model.Config.from_hf(hf)

    def kernels(step: Callable[[], Any]) -> set[str]:
        jobs: list[Job] = []
        with torch.inference_mode(), collect(jobs.append):
            step()
        return {kernel(job) for job in jobs}

    known = {name for _, step in DrySteps(model, sizes, ops, config, CpuPlatform()) for name in kernels(step)}
    layer = model.Model(replace(sizes, num_layers=1), Build.plain(ops, torch.bfloat16, config.max_model_len)).eval()
    _lend_memory(layer, torch.device("cpu"))
    cache = [torch.zeros(2, 4, 16, sizes.num_kv_heads, sizes.head_dim, dtype=torch.bfloat16)]

    def prompts(num_tokens: int, num_seqs: int) -> None:
        fwd = _prompt_step(num_tokens, num_seqs, narrows(num_tokens, num_seqs), cache)
        hidden = layer(fwd.input_ids, fwd)
        ops.greedy(layer.compute_logits(hidden[fwd.logits_indices]))

    unknown: dict[str, list[tuple[int, int]]] = {}
    for size in ((t, s) for t in TOKENS for s in SEQUENCES if s < t):
        for name in kernels(lambda size=size: prompts(*size)) - known:
            unknown.setdefault(name, []).append(size)
    print(json.dumps({"known": len(known), "unknown": unknown}))


if __name__ == "__main__":
    main()
