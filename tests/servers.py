"""A server in processes of its own, on a free port, for tests."""

import atexit
import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from tiny_checkpoints import byte_tokenizer

HERE = Path(__file__).parent
READY_S = 120.0
LEAVING_S = 60.0  # seconds that processes have to end, on a machine that has much else to do


def free_port() -> int:
    """A port below those that the system hands out by itself, so that no connection takes it before the server does."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@functools.cache
def run_dirs() -> str:
    """Where this test process's servers make their run directories: a starting server sweeps those of dead ones, also of others."""
    folder = tempfile.mkdtemp(prefix="quire-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fake_model(folder: Path, vocab_size: int = 256) -> Path:
    """A folder with a tokenizer and just enough config for the API process; the fake engine reads nothing."""
    byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size, "max_position_embeddings": 4096}))
    return folder


class Server:
    """Use as a context manager. fake: with the engine of fake_engine.py."""

    def __init__(self, log: Path, model: Path | None, *, fake: bool = False, wait: bool = True, **args: Any) -> None:
        engine_names = {"max_model_len", "max_num_seqs", "num_gpu_blocks_override", "dtype", "max_num_queued_reqs",
                        "scheduling_policy", "chat_template", "load_format", "max_num_batched_tokens"}  # fmt: skip
        engine_args = {"model": str(model)} if model else {}
        engine_args |= {name: args.pop(name) for name in engine_names & set(args)}
        self.port = args.setdefault("port", free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        options = {"engine_args": engine_args, "server_args": args, "fake": fake}
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TMPDIR": run_dirs()}
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "launch_server.py"), json.dumps(options)], stdout=file, stderr=file, env=env
            )
        if wait:
            self.wait_ready()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_ready(self, within_s: float = READY_S) -> float:
        """Waits until /health says 200; returns the seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            assert self.process.poll() is None, self.text()
            if self.health() == 200:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"not ready within {within_s} s: {self.text()}")

    def health(self) -> int:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(self.url + "/health", timeout=60).status_code
        return 0

    def wait_for(self, condition: Callable[[], object], within_s: float = READY_S) -> None:
        """Waits until something is so, of which the server may be too busy to tell."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError, psutil.Error, LookupError):
                if condition():
                    return
            time.sleep(0.02)
        raise AssertionError(f"not so within {within_s} s: {self.text()}")

    def text(self) -> str:
        return self.log.read_text()

    def pid(self, module: str) -> int:
        """Process id of the child whose command line names a module or file."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if any(module in word for word in child.cmdline()):
                    return child.pid
        raise LookupError(f"no child runs {module}")

    def engine_pid(self) -> int:
        with contextlib.suppress(LookupError):
            return self.pid("fake_engine")
        return self.pid("quire.engine.process")

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def metric(self, name: str) -> float:
        """Value of a metric with vLLM's prefix."""
        text = httpx.get(self.url + "/metrics", timeout=60).text
        found = re.search(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        assert found, f"no metric {name}"
        return float(found[1])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, within_s: float = LEAVING_S) -> int:
        return self.process.wait(within_s)

    def kill(self) -> None:
        """Ends it as kindly as haste allows, and checks that nothing is left."""
        if self.process.poll() is None:
            family = self.family()
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LEAVING_S)
            self.process.kill()
            self.process.wait()
            _, alive = psutil.wait_procs(family, timeout=LEAVING_S)
            assert not alive, f"orphans: {alive}"
