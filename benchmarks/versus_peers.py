"""quire and its peers, vLLM and SGLang, on the same card in the same run: `make bench-gpu`.

    python benchmarks/versus_peers.py [--engines quire,vllm,sglang] [--shapes 0.5b,1.5b,7b] [--workloads decode_b1,chat,...]
        [--vllm-path DIR | --vllm-python EXE] [--sglang-path DIR | --sglang-python EXE] [--out FILE.json]

A peer is measured where it can be imported: in the Python of --vllm-python, or in this one with --vllm-path in front of its
PYTHONPATH. Each engine has processes of its own, one after another. The run may be cut into pieces by engines, shapes and
workloads: what a piece measures is put beside what FILE.json holds. Figures of ours that another commit gave are dropped then.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from versus_engines import fresh_folder
from versus_floors import Rates
from versus_table import PEERS, Results, shown
from versus_workloads import FULL, TINY

HERE = Path(__file__).resolve().parent
OFFLINE = ["decode_b1", "decode_b8", "decode_b64", "decode_b256", "prefill", "ttft_1k", "chat"]
PREFIX = ["prefix_groups", "prefix_turns"]
MIXED = ["itl_p99_mixed"]
OWN = ["sampling_cost", "sampling_each"]  # the second takes minutes, and is run where it is asked for
STARTS = ["start_cold", "start_warm"]
ALL = [*OFFLINE, *PREFIX, *MIXED, *OWN[:1], *STARTS]
# SGLang's decode graphs: 1024 rows are its best for chat at 0.5B, 512 its best elsewhere and for its start.
LARGE_GRAPHS = {"0.5b": {"cuda_graph_max_bs_decode": 1024}, "1.5b": {"cuda_graph_max_bs_decode": 1024}}


class Piece:
    """One process: an engine, a shape, some workloads."""

    def __init__(self, workloads: list[str], serving: bool = False, cold: bool = False, **options: Any) -> None:
        self.workloads, self.serving, self.cold, self.options = workloads, serving, cold, options


def pieces(engine: str, shape: str, wanted: list[str]) -> list[Piece]:
    """Processes that measure what is wanted of an engine, in order."""

    def some(names: list[str]) -> list[str]:
        return [name for name in names if name in wanted]

    starts = bool(some(STARTS))
    if engine == "quire":
        plain, serving = some([*OFFLINE, *PREFIX, *OWN]), some(MIXED)
        found = [Piece([], cold=True)] if starts else []
        found += [Piece(plain)] if plain or starts else []
        return found + ([Piece(serving, serving=True)] if serving else [])
    if engine == "vllm":
        return [Piece(some([*OFFLINE, *PREFIX, *MIXED]), cold=True)]
    # The first process of a shape also builds small kernels, so that the second one's start is the better one.
    plain, serving = some(OFFLINE), some([*PREFIX, *MIXED])
    found = [Piece(plain, cold=True, **LARGE_GRAPHS.get(shape, {}))] if plain or starts else []
    return found + ([Piece(serving, serving=True)] if serving or starts else [])


class Runner:
    """Starts processes and reads their RESULT lines."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.caches = options.cache_dir or tempfile.mkdtemp(prefix="versus-")
        os.makedirs(self.caches, exist_ok=True)

    def python(self, engine: str) -> str:
        return getattr(self.options, f"{engine}_python", None) or sys.executable

    def environment(self, engine: str, shape: str) -> dict[str, str]:
        """Caches of our own below one folder; and for a peer, its packages alone."""
        cache = os.path.join(self.caches, engine, shape if engine == "quire" else "")
        found = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": cache, "CUDA_CACHE_PATH": f"{cache}/cuda"}
        found |= {"TRITON_CACHE_DIR": f"{cache}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        path = getattr(self.options, f"{engine}_path", None)
        if engine == "quire":
            found["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH")])
            )
        elif path:
            found["PYTHONPATH"] = os.path.abspath(path)
        if engine == "vllm":
            found.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        if engine == "sglang" and path:
            found |= {"TVM_FFI_CACHE_DIR": os.path.abspath(f"{path}/_jit"), "SGLANG_IS_FLASHINFER_AVAILABLE": "false"}
            found.setdefault("CUDA_HOME", "/usr/local/cuda")
        return found

    def importable(self, engine: str) -> bool:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({engine!r}) is None)"
        return subprocess.run([self.python(engine), "-c", code], env=self.environment(engine, "")).returncode == 0

    def call(self, engine: str, shape: str, command: list[str]) -> list[dict[str, Any]]:
        """RESULT lines of one process, as many as it gave before it ended or its time was over."""
        log = Path(self.options.logs or self.caches) / f"{engine}-{shape}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        found = []
        with log.open("a") as errors:
            process = subprocess.Popen(
                ["timeout", "-k", "5", str(self.options.limit), self.python(engine), *command],
                env=self.environment(engine, shape), stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self.caches,
            )  # fmt: skip
            for line in process.stdout or ():
                if line.startswith("RESULT "):
                    found.append(json.loads(line.removeprefix("RESULT ")))
                    print(f"  {engine} {shape} {line.removeprefix('RESULT ').strip()[:200]}", flush=True)
                else:
                    errors.write(line)
        if process.wait():
            print(f"  {engine} {shape}: exit {process.returncode}; {log} ends with\n{tail(log)}", flush=True)
        return found

    def measure(self, engine: str, shape: str, piece: Piece) -> dict[str, Any]:
        """Figures by name."""
        if piece.cold and engine == "quire":
            fresh_folder(os.path.join(self.caches, engine, shape))
        command = [str(HERE / "versus_child.py"), engine, shape, "--workloads", ",".join(piece.workloads)]
        command += ["--serving"] * piece.serving + ["--tiny"] * self.options.tiny
        command += ["--options", json.dumps(piece.options | self.options.engine_options.get(engine, {}))]
        figures: dict[str, Any] = {}
        for found in self.call(engine, shape, [*command, "--spawned", str(time.time())]):
            if "start" in found:
                figures["start_cold" if piece.cold else "start_warm"] = found.pop("start")
            figures |= {name: value for name, value in found.items() if name in ALL or name == "versions"}
            details = {k: v for k, v in found.items() if k not in ALL and k != "versions"}
            figures.setdefault("details", {}).update({name: details for name in found if name in ALL and details})
        return figures


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join("    " + line[:300] for line in path.read_text(errors="replace").splitlines()[-lines:])


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def commit_of() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="quire,vllm,sglang")
    parser.add_argument("--shapes", default="0.5b,1.5b,7b")
    parser.add_argument("--workloads", default=",".join(ALL))
    for engine in PEERS:
        parser.add_argument(
            f"--{engine}-path",
            default=os.environ.get(f"{engine.upper()}_PATH"),
            help=f"folder that {engine} is imported from",
        )
        parser.add_argument(f"--{engine}-python", help=f"Python that has {engine}")
    parser.add_argument("--out", default=str(HERE / "results" / "versus-peers.json"))
    parser.add_argument("--commit", default=commit_of(), help="of this tree, where git cannot tell")
    parser.add_argument("--limit", type=int, default=300, help="seconds that one process may take")
    parser.add_argument(
        "--cache-dir", help="folder for compiled kernels; default: a new one, so that the first start is cold"
    )
    parser.add_argument("--logs", help="folder for what the engines print")
    parser.add_argument(
        "--engine-options", type=json.loads, default={}, help='JSON, such as {"vllm": {"enforce_eager": true}}'
    )
    parser.add_argument("--tiny", action="store_true", help="small workloads, for tests")
    return parser.parse_args()


def main() -> None:
    options = parse()
    runner = Runner(options)
    engines, wanted = options.engines.split(","), options.workloads.split(",")
    if unknown := set(wanted) - {*ALL, *OWN}:
        sys.exit(f"unknown workloads {sorted(unknown)}; there are {', '.join(ALL)}")
    absent = [engine for engine in engines if engine in PEERS and not runner.importable(engine)]
    for engine in absent:
        print(f"{engine} cannot be imported: give --{engine}-path or --{engine}-python", flush=True)
    (device,) = runner.call("quire", "device", [str(HERE / "versus_floors.py")])
    results = Results.open(Path(options.out), options.commit)
    results.describe(device["machine"], now(), " ".join(sys.argv))
    rates = Rates(device["bytes_s"], device["flops_s"])
    for shape in options.shapes.split(","):
        for engine in engines:
            for piece in [] if engine in absent else pieces(engine, shape, wanted):
                results.add(engine, shape, runner.measure(engine, shape, piece), rates, TINY if options.tiny else FULL)
                results.save()
    print(shown(results.rows), flush=True)


if __name__ == "__main__":
    main()
