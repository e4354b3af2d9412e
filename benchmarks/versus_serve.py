"""quire and its peers as HTTP servers under the same load, the client being `quire bench serve` in a process of its own.

    python benchmarks/versus_serve.py [--engines quire,vllm] [--shapes 1.5b,7b] [--rates 1,8,32,inf] [--seconds 15]
        [--http-path DIR] [--vllm-path DIR | --vllm-python EXE] [--out FILE.json]

Chat-shaped requests (220 tokens in, 200 out on average) arrive at each rate, `inf` meaning all at once; no two rates share prompts.
A request is good when its first token comes in time and each further one in time on average; goodput is the good ones a second.
LIMITS are those of MLPerf Inference 5.1 for a model of 8B, and tighter ones. `serve_goodput` is the goodput at the last rate within
the "server" limits; all rates and limits are in the row's detail. --http-path is a folder of packages that quire's server needs where
they are not installed.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapes
from versus_engines import versions
from versus_floors import Rates
from versus_peers import HERE, Runner, commit_of, now, tail
from versus_table import Results
from versus_tokenizer import write_tokenizer
from versus_workloads import FULL

START_SECONDS = 240
LIMITS = {
    "server": (2000.0, 100.0),
    "interactive": (500.0, 30.0),
    "tight": (200.0, 20.0),
}  # ms: first token, each further one
HEADLINE = "server"
KEPT = (
    "request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms", "median_tpot_ms",
    "completed", "failed", "duration",
)  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
GONE_SECONDS = 10  # until the device's memory is free for the next server


def command(engine: str, python: str, folder: str, port: int, max_model_len: int) -> list[str]:
    """What starts a server of this engine."""
    common = ["--load-format", "dummy", "--port", str(port), "--host", "127.0.0.1"]
    if engine == "sglang":
        own = ["--context-length", str(max_model_len), "--attention-backend", "fa3", "--sampling-backend", "pytorch"]
        return [
            python,
            "-m",
            "sglang.launch_server",
            "--model-path",
            folder,
            "--mem-fraction-static",
            "0.85",
            *common,
            *own,
        ]
    module = ["quire", "serve"] if engine == "quire" else ["vllm.entrypoints.cli.main", "serve"]
    return [
        python,
        "-m",
        *module,
        folder,
        "--max-model-len",
        str(max_model_len),
        "--gpu-memory-utilization",
        "0.9",
        *common,
    ]


@contextlib.contextmanager
def server(engine: str, folder: str, options: argparse.Namespace, runner: Runner) -> Iterator[str]:
    """The address of a server that is ready; it is gone afterwards, with all of its processes."""
    port = free_port()
    words = command(engine, runner.python(engine), folder, port, options.max_model_len)
    if options.device:
        words += ["--device", options.device]
    log = Path(options.logs or runner.caches) / f"serve-{engine}-{Path(folder).name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        environment = runner.environment(engine, Path(folder).name)
        environment = with_http(environment, options) if engine == "quire" else environment | OFFLINE
        process = subprocess.Popen(
            words, env=environment, stdout=output, stderr=output, cwd=runner.caches, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/health", process)
            yield address
        except TimeoutError as error:
            raise RuntimeError(f"{engine} did not come up: {error}; {log} ends with\n{tail(log)}") from None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            end_group(process.pid)


def end_group(group: int) -> None:
    """Kills what is left of a server, and waits until it is gone."""
    deadline = time.monotonic() + GONE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 9)
            time.sleep(0.1)


def wait_for(url: str, process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TimeoutError(f"its process ended with {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.2)
    raise TimeoutError(f"no answer in {START_SECONDS} s")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def load(
    address: str, folder: str, rate: str, seed: int, options: argparse.Namespace, runner: Runner
) -> dict[str, float]:
    """What the clients of one rate saw."""
    count = options.unbounded if rate == "inf" else max(4, round(float(rate) * options.seconds))
    result = Path(runner.caches) / f"load-{rate}.json"
    result.unlink(missing_ok=True)
    words = [
        runner.python("quire"), "-m", "quire", "bench", "serve", "--base-url", address, "--tokenizer", folder, "--endpoint", "/v1/completions",
        "--dataset-name", "chat", "--num-prompts", str(count), "--request-rate", rate, "--ignore-eos", "--temperature", "0", "--seed", str(seed),
        "--save-detailed", "--result-dir", str(result.parent), "--result-filename", result.name, "--disable-tqdm",
    ]  # fmt: skip
    environment = with_http(runner.environment("quire", "client"), options)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, cwd=runner.caches)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
    if not result.is_file():
        raise RuntimeError(f"nothing was measured at rate {rate}")
    held = json.loads(result.read_text())
    return {key: held[key] for key in KEPT} | {
        f"goodput_{name}": goodput(held["requests"], held["duration"], *limits) for name, limits in LIMITS.items()
    }


def goodput(requests: list[dict[str, Any]], seconds: float, ttft_ms: float, tpot_ms: float) -> float:
    """Requests a second that came to their end and kept both limits."""
    ended = [r for r in requests if r["error"] is None]
    kept = [
        r["ttft_ms"] <= ttft_ms and (r["e2el_ms"] - r["ttft_ms"]) / max(r["output_len"] - 1, 1) <= tpot_ms
        for r in ended
    ]
    return sum(kept) / seconds


def with_http(environment: dict[str, str], options: argparse.Namespace) -> dict[str, str]:
    """With the folder of --http-path behind all others."""
    if not options.http_path:
        return environment
    return environment | {"PYTHONPATH": environment["PYTHONPATH"] + os.pathsep + os.path.abspath(options.http_path)}


def measure(engine: str, shape: str, options: argparse.Namespace, runner: Runner) -> dict[str, Any]:
    """The row's figure, and each rate's."""
    folder = shapes.write_config(shape, Path(runner.caches) / "models")
    write_tokenizer(folder, shapes.SHAPES[shape]["vocab_size"])
    rates = options.rates.split(",")
    found: dict[str, Any] = {}
    with server(engine, folder, options, runner) as address:
        for seed, rate in enumerate(dict.fromkeys(["8", rates[-1]])):  # graphs and kernels are there afterwards
            load(address, folder, rate, 1000 + seed, options, runner)
        for seed, rate in enumerate(rates):
            found[rate] = load(address, folder, rate, seed, options, runner)
            print(f"  {engine} {shape} rate {rate}: {rounded(found[rate])}", flush=True)
    figures = {
        "serve_goodput": found[rates[-1]][f"goodput_{HEADLINE}"],
        "details": {"serve_goodput": {**found, "limits_ms": LIMITS, "headline": HEADLINE}},
    }
    return figures | ({"versions": versions()} if engine == "quire" else {})


def rounded(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" if value is not None else name for name, value in figures.items())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="quire,vllm")
    parser.add_argument("--shapes", default="1.5b,7b")
    parser.add_argument("--rates", default="1,8,32,inf", help="requests a second, the one that counts last")
    parser.add_argument("--seconds", type=float, default=15, help="how long requests arrive at a rate")
    parser.add_argument("--unbounded", type=int, default=500, help="requests of rate inf")
    parser.add_argument("--max-model-len", type=int, default=FULL.max_model_len)
    parser.add_argument("--device", help="of quire, for tests")
    parser.add_argument("--http-path", help="packages of HTTP servers, for quire where they are not installed")
    for engine in ("vllm", "sglang"):
        parser.add_argument(f"--{engine}-path", default=os.environ.get(f"{engine.upper()}_PATH"))
        parser.add_argument(f"--{engine}-python")
    parser.add_argument("--out", default=str(HERE / "results" / "versus-peers.json"))
    parser.add_argument("--commit", default=commit_of())
    parser.add_argument("--cache-dir")
    parser.add_argument("--logs")
    parser.add_argument("--limit", type=int, default=60, help="seconds for measuring the device")
    return parser.parse_args()


def main() -> None:
    options = parse()
    runner = Runner(options)
    results = Results.open(Path(options.out), options.commit)
    machine = results.head["machine"] or runner.call("quire", "device", [str(HERE / "versus_floors.py")])[0]["machine"]
    results.describe(machine, now(), " ".join(sys.argv))
    for name, (ttft_ms, tpot_ms) in LIMITS.items():
        print(f"goodput_{name}: first token within {ttft_ms:g} ms, each further one within {tpot_ms:g} ms on average")
    for shape in options.shapes.split(","):
        for engine in options.engines.split(","):
            try:
                results.add(engine, shape, measure(engine, shape, options, runner), Rates(1.0, 1.0), None)
                results.save()
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                print(f"  {engine} {shape}: {error}", flush=True)


if __name__ == "__main__":
    main()
