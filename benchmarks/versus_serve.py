"""quire and its peers as HTTP servers under the same load, the client being `quire bench serve` in a process of its own.

    python benchmarks/versus_serve.py [--engines quire,vllm] [--shapes 1.5b,7b] [--rates 1,8,32,inf] [--seconds 15]
        [--http-path DIR] [--vllm-path DIR | --vllm-python EXE] [--out FILE.json]

Chat-shaped requests (220 tokens in, 200 out on average) arrive at each rate, `inf` meaning all at once. A request is good when its
first token comes within 200 ms and each further one within 20 ms on average; `serve_goodput` is the good ones a second at the last
rate. All rates are in the row's detail. --http-path is a folder of packages that quire's server needs where they are not installed.
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
from versus_engines import versions, write_tokenizer
from versus_floors import Rates
from versus_peers import HERE, Runner, commit_of, now, tail
from versus_table import Results
from versus_workloads import FULL

START_SECONDS = 240
LIMITS = ("ttft:200", "tpot:20")
KEPT = (
    "request_goodput", "request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms",
    "completed", "failed",
)  # fmt: skip


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
        if engine == "quire" and options.http_path:
            environment["PYTHONPATH"] += os.pathsep + os.path.abspath(options.http_path)
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
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


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


def load(address: str, folder: str, rate: str, options: argparse.Namespace, runner: Runner) -> dict[str, float]:
    """What the clients of one rate saw."""
    count = options.unbounded if rate == "inf" else max(4, round(float(rate) * options.seconds))
    name = f"load-{rate}.json"
    words = [
        runner.python("quire"), "-m", "quire", "bench", "serve", "--base-url", address, "--tokenizer", folder, "--endpoint", "/v1/completions",
        "--dataset-name", "chat", "--num-prompts", str(count), "--request-rate", rate, "--ignore-eos", "--temperature", "0",
        "--goodput", *LIMITS, "--save-result", "--result-dir", runner.caches, "--result-filename", name, "--disable-tqdm",
    ]  # fmt: skip
    environment = runner.environment("quire", "client")
    if options.http_path:
        environment["PYTHONPATH"] += os.pathsep + os.path.abspath(options.http_path)
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, cwd=runner.caches)
    if result.returncode:
        print(result.stderr[-2000:], flush=True)
    held = json.loads((Path(runner.caches) / name).read_text())
    return {key: held[key] for key in KEPT}


def measure(engine: str, shape: str, options: argparse.Namespace, runner: Runner) -> dict[str, Any]:
    """The row's figure, and each rate's."""
    folder = shapes.write_config(shape, Path(runner.caches) / "models")
    write_tokenizer(folder, shapes.SHAPES[shape]["vocab_size"])
    rates = options.rates.split(",")
    found: dict[str, Any] = {}
    with server(engine, folder, options, runner) as address:
        load(address, folder, "8", options, runner)  # whose graphs and kernels are there then
        for rate in rates:
            found[rate] = load(address, folder, rate, options, runner)
            print(f"  {engine} {shape} rate {rate}: {found[rate]}", flush=True)
    figures = {"serve_goodput": found[rates[-1]]["request_goodput"], "details": {"serve_goodput": found}}
    return figures | ({"versions": versions()} if engine == "quire" else {})


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
    for shape in options.shapes.split(","):
        for engine in options.engines.split(","):
            try:
                results.add(engine, shape, measure(engine, shape, options, runner), Rates(1.0, 1.0), None)
                results.save()
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                print(f"  {engine} {shape}: {error}", flush=True)


if __name__ == "__main__":
    main()
