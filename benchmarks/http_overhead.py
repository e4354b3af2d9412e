"""What HTTP costs: tokens a second of a server beside LLM.generate on this machine, and one-token chunks a second of one core.

    python benchmarks/http_overhead.py                both; --json FILE keeps the result
    nice -n -20 python benchmarks/http_overhead.py    as root, on a machine that others use too

streams   64 streams of the bundled model: a real server, and in turns with it LLM.generate on the same prompts
chunks    the API process alone, held to one core; an engine that computes nothing and the client share the other cores. The engine
          waits for the client, so that no two tokens share a chunk
"""

import argparse
import contextlib
import json
import os
import platform
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from quire import LLM, SamplingParams
from quire.config import BUILTIN_MODEL, EngineArgs, EngineConfig
from quire.core.outputs import EngineOutput
from quire.core.request import Request
from quire.engine.process import EngineProcess
from quire.errors import SetupError
from quire.hub import resolve_model
from quire.server import listen
from quire.server.child import Child
from quire.server.options import ServerArgs
from quire.server.supervisor import API_COMMAND
from quire.text.tokenizer import Tokenizer

NUM_STREAMS = 64
NUM_TOKENS = 512
ROUNDS = 5
NUM_CHUNKS_EACH = 4000  # of a stream, for the API process alone
CLIENT_PAUSE_S = 0.05
WINDOW_STEPS = 2  # steps that the engine without a model may be ahead of the client
PROMPT = "Tell me about number {}."
EVENT_END = b"\n\n"


def body(text: str, max_tokens: int, **fields: Any) -> bytes:
    """A streamed chat completion of exactly that many tokens."""
    message = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
    return json.dumps({**message, "stream": True, "ignore_eos": True, **fields}).encode()


def stream_all(port: int, bodies: list[bytes], on_events: Callable[[int], None], pause_s: float = 0.0) -> list[bytes]:
    """Posts all at once and reads all answers to their ends; on_events hears how many events came. Returns the answers' last bytes.

    pause_s  between two looks at the sockets: a client of another machine would not take time from the server's cores
    """
    selector = selectors.DefaultSelector()
    tails: list[bytes] = [b""] * len(bodies)
    for number, data in enumerate(bodies):
        sock = socket.create_connection(("127.0.0.1", port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, number)
    while selector.get_map():
        time.sleep(pause_s)
        for key, _ in selector.select():
            part = key.fileobj.recv(2**18)  # type: ignore[union-attr]
            if not part:
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                continue
            joined = tails[key.data][-1:] + part
            on_events(joined.count(EVENT_END))
            tails[key.data] = (tails[key.data] + part)[-2000:]
    return tails


def completion_tokens(tail: bytes) -> int:
    """From the usage in the last events."""
    found = tail.rpartition(b'"completion_tokens":')[2]
    return int(found[: found.index(b",")])


@contextlib.contextmanager
def server() -> Iterator[int]:
    """`quire serve` with the bundled model. Yields its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "quire",
        "serve",
        "--port",
        str(port),
        "--disable-uvicorn-access-log",
        "--no-enable-prefix-caching",
    ]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        wait_ready(port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wait_ready(port: int) -> None:
    """Until /health answers 200."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def streams() -> dict[str, Any]:
    """Server and LLM.generate in turns, so that neighbours on the machine disturb both alike."""
    prompts = [PROMPT.format(i) for i in range(NUM_STREAMS)]
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    bodies = [body(prompt, NUM_TOKENS, stream_options={"include_usage": True}) for prompt in prompts]
    llm = LLM(BUILTIN_MODEL, enable_prefix_caching=False)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rates: dict[str, list[float]] = {"generate": [], "server": []}

    def measure(name: str, work: Callable[[], int]) -> None:
        began = time.perf_counter()
        num_tokens = work()
        rates[name].append(num_tokens / (time.perf_counter() - began))

    def generate() -> int:
        return sum(len(o.outputs[0].token_ids) for o in llm.chat(chats, params, use_tqdm=False))

    with server() as port:

        def serve() -> int:
            return sum(completion_tokens(tail) for tail in stream_all(port, bodies, lambda count: None, CLIENT_PAUSE_S))

        for work in (generate, serve):
            work()
        for _ in range(ROUNDS):
            measure("generate", generate)
            measure("server", serve)
    llm.close()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    share = statistics.median(s / g for s, g in zip(rates["server"], rates["generate"]))
    return {"tokens_per_second": medians, "rounds": rates, "server_share": share}


class NoModel:
    """An engine that gives each live request the same token in each step, never further ahead of its reader than allowed."""

    def __init__(self, config: EngineConfig, token_id: int) -> None:
        self.config = config
        self.num_blocks = 10_000
        self.on_admitted: Callable[[list[str]], None] | None = None
        self.num_received = 0  # counted by the client
        self.num_sent = 0
        self._token_ids = [token_id]
        self._left: dict[str, int] = {}

    def add(self, request: Request) -> None:
        """A request."""
        self._left[request.id] = request.params.max_tokens or 1

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forgets it."""
        self._left.pop(request_id, None)

    def has_work(self) -> bool:
        """Whether any is left."""
        return bool(self._left)

    def stats(self) -> object:
        """Nothing."""
        return object()

    def close(self) -> None:
        """Nothing to free."""

    def step(self) -> list[EngineOutput]:
        """A token for each, once the client has most of the last ones."""
        while self.num_sent - self.num_received > WINDOW_STEPS * NUM_STREAMS:
            time.sleep(0.0001)
        if len(self._left) < NUM_STREAMS and self.num_sent == 0:
            time.sleep(0.001)  # all begin together
            return []
        outputs = []
        for request_id, left in list(self._left.items()):
            outputs.append(EngineOutput(request_id, 0, self._token_ids, finish_reason="length" if left == 1 else None))
            self._left[request_id] = left - 1
            if left == 1:
                del self._left[request_id]
        self.num_sent += len(outputs)
        return outputs


def chunks() -> dict[str, Any]:
    """The API process on one core; everything else on the others."""
    folder = str(resolve_model(BUILTIN_MODEL))
    token_id = Tokenizer.from_dir(folder).encode("The capital", add_special_tokens=False)[-1]
    config = EngineConfig(
        model_dir=folder, model_name=BUILTIN_MODEL, device="cuda", dtype="bfloat16", max_model_len=8192, block_size=16,
        max_num_seqs=NUM_STREAMS, max_num_batched_tokens=512,
    )  # fmt: skip
    engine = NoModel(config, token_id)
    cores = sorted(psutil.Process().cpu_affinity())
    with api_process(engine) as (port, process):
        process.cpu_affinity(cores[:1])
        psutil.Process().cpu_affinity(cores[1:] or cores)
        bodies = [body(PROMPT.format(i), NUM_CHUNKS_EACH) for i in range(NUM_STREAMS)]
        num_events = 0

        def count(new: int) -> None:
            nonlocal num_events
            num_events += new
            engine.num_received = num_events

        before, began = process.cpu_times(), time.perf_counter()
        stream_all(port, bodies, count)
        elapsed_s, after = time.perf_counter() - began, process.cpu_times()
    psutil.Process().cpu_affinity(cores)
    # A stream has three events beside its tokens: the role, the reason why it ended, [DONE].
    num_chunks = num_events - 3 * NUM_STREAMS
    user_s, system_s = after.user - before.user, after.system - before.system
    cpu_s = user_s + system_s
    return {
        "chunks": num_chunks, "tokens": NUM_STREAMS * NUM_CHUNKS_EACH, "seconds": elapsed_s, "api_user_s": user_s, "api_system_s": system_s,
        "chunks_per_second": num_chunks / elapsed_s, "chunks_per_cpu_second": num_chunks / cpu_s,
    }  # fmt: skip


def run_until_alone(process: EngineProcess) -> None:
    """Serves; afterwards the API process is gone, and no other comes."""
    with contextlib.suppress(SetupError):
        process.run()


@contextlib.contextmanager
def api_process(engine: NoModel) -> Iterator[tuple[int, psutil.Process]]:
    """The API process as the supervisor starts it, with the engine on a thread of this process."""
    listener = listen.bind("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "socket": f"{folder}/engine.sock", "token": "t", "began_s": time.monotonic(), "log_format": "text", "listener": listener.fileno(),
            "engine_args": asdict(EngineArgs(model=engine.config.model_dir)),
            "server_args": asdict(ServerArgs(disable_uvicorn_access_log=True, uvicorn_log_level="warning")),
        }  # fmt: skip
        child = Child("API", API_COMMAND, settings, [listener.fileno()])
        process = EngineProcess(settings["socket"], "t", lambda args, config: engine)
        threading.Thread(target=run_until_alone, args=(process,), daemon=True).start()
        try:
            port = listener.getsockname()[1]
            wait_ready(port)
            yield port, psutil.Process(child.pid)
        finally:
            child.kill()
            listener.close()


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["streams", "chunks", []], default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_before": os.getloadavg(),
    }
    for name in args.what or ["chunks", "streams"]:
        result[name] = {"streams": streams, "chunks": chunks}[name]()
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    result["load_after"] = os.getloadavg()
    print(f"load: {result['load_before'][0]:.1f} before, {result['load_after'][0]:.1f} after")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
