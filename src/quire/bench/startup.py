"""`quire bench startup`: how long from the start of a process to its first token, phase by phase, with cold and with warm caches.

Each start is a process of its own (quire.bench.startup_child). Cold means an empty folder for compiled kernels; what the operating
system keeps of files in memory, it keeps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from quire import env
from quire.config import EngineArgs, option
from quire.errors import ConfigError
from quire.hub import model_folder

Phases = dict[str, float]
TOTAL = "first token after"


@dataclass
class StartupArgs:
    """Options of `quire bench startup`; names are those of vLLM's."""

    num_iters_cold: int = option(1, "starts with nothing cached, each in a cache folder of its own")
    num_iters_warm: int = option(2, "starts with the kernels of the starts before; the fastest is shown")
    output_json: str | None = option(None, "file for the result")


def run(engine: EngineArgs, args: StartupArgs) -> int:
    """Measures, prints a table and returns 0. Raises SetupError types, and ConfigError when a start fails."""
    if args.num_iters_cold < 1 or args.num_iters_warm < 0:
        raise ConfigError("num_iters_cold must be at least 1, num_iters_warm at least 0")
    engine = replace(engine, model=str(model_folder(engine)), hf_token=None)  # which a child does not need any more
    with tempfile.TemporaryDirectory(prefix="quire-startup-") as root:
        caches = [str(Path(root) / str(i)) for i in range(args.num_iters_cold)]
        cold = [_start(engine, cache) for cache in caches]
        warm = [_start(engine, caches[-1]) for _ in range(args.num_iters_warm)]
    print(table(cold, warm))
    if args.output_json:
        result = {"benchmark": "startup", "model": engine.model, "cold": cold, "warm": warm}
        Path(args.output_json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def table(cold: Sequence[Phases], warm: Sequence[Phases]) -> str:
    """Seconds of each phase, the fastest start of each kind a column. Indented phases are parts of the one above them or run beside it."""
    columns = {name: min(runs, key=lambda run: run[TOTAL]) for name, runs in (("cold", cold), ("warm", warm)) if runs}
    names = list(dict.fromkeys(phase for run in columns.values() for phase in run))
    lines = [f"{'phase':44}" + "".join(f"{name + ', s':>10}" for name in columns)]
    for phase in names:
        figures = (f"{run[phase]:10.2f}" if phase in run else f"{'-':>10}" for run in columns.values())
        lines.append(f"{phase:44}" + "".join(figures))
    return "\n".join(lines)


def _start(engine: EngineArgs, cache: str) -> Phases:
    environment = {
        **os.environ,
        "HF_HOME": os.environ.get("HF_HOME") or str(env.caches() / "huggingface"),  # models are not what is cold
        "XDG_CACHE_HOME": cache,
        "TRITON_CACHE_DIR": str(Path(cache) / "triton"),
        "CUDA_CACHE_PATH": str(Path(cache) / "cuda"),
    }
    command = [sys.executable, "-m", "quire.bench.startup_child", str(time.time()), json.dumps(asdict(engine))]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise ConfigError(f"a start failed with exit code {result.returncode}; its own words are above")
    phases: Phases = json.loads(result.stdout.splitlines()[-1])
    return phases
