"""`quire run-batch -i IN -o OUT`: a file of requests in OpenAI's batch format, answered into another file. Works as a server that
nobody else can reach, so an engine that dies is replaced on the way and every route and field of the server is there.
"""

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tqdm import tqdm

from quire.cli.args import Parser, parse, refuse_given
from quire.config import EngineArgs, option
from quire.errors import ConfigError, QuireError
from quire.server.batch import Counts, Poster, answer_all
from quire.server.options import ServerArgs
from quire.server.supervisor import Supervisor

HELP = "answer a file of requests (OpenAI's batch format)"
MAX_THREADS = 256


@dataclass
class BatchArgs:
    """Options of `quire run-batch`, beside the engine's. Names are those that users of vLLM type."""

    input_file: str | None = option(None, "file with a request a line", aliases=("-i",))
    output_file: str | None = option(None, "file for the answers, a line each, in the same order", aliases=("-o",))
    output_tmp_dir: str | None = option(None, "write here first, and move the whole file to its place at the end")
    served_model_name: list[str] | None = option(None, "name(s) of the model in requests; default: as given")
    max_logprobs: int = option(20, "most log-probabilities that a request may ask for at a position")
    enable_metrics: bool = option(False, "serve Prometheus metrics at --host and --port meanwhile")
    host: str = option("127.0.0.1", "address for --enable-metrics")
    port: int = option(8000, "port for --enable-metrics")


def main(argv: Sequence[str]) -> int:
    """Runs until the last line is answered. Returns 0 then, though lines may have been refused, and 1 if the server gave up."""
    parser = Parser(prog="quire run-batch", description=HELP)
    (engine_args, args), given = parse(parser, argv, [EngineArgs, BatchArgs])
    if not args.enable_metrics:
        refuse_given(given, ("host", "port"), "is where metrics are served; give --enable-metrics too")
    source, target = _file(args.input_file, "--input-file"), _file(args.output_file, "--output-file")
    if not source.is_file():
        raise ConfigError(f"--input-file {source}: there is no such file")
    batch = Batch(engine_args, args, source, target)
    code = batch.run()
    if batch.error is not None:
        raise batch.error
    return 0 if batch.is_done else code or 1


class Batch:
    """One run: the supervisor in this thread, the requests in others.

    error    why it could not be finished
    is_done  every line has its answer in the output
    """

    def __init__(self, engine_args: EngineArgs, args: BatchArgs, source: Path, target: Path) -> None:
        self.error: QuireError | None = None
        self.is_done = False
        self._source, self._target, self._tmp_dir = source, target, args.output_tmp_dir
        self._num_threads = min(MAX_THREADS, engine_args.max_num_seqs or MAX_THREADS)
        self._key = secrets.token_hex(16)
        server_args = ServerArgs(
            host=args.host if args.enable_metrics else "127.0.0.1", port=args.port if args.enable_metrics else 0,
            api_key=[self._key], served_model_name=args.served_model_name, max_logprobs=args.max_logprobs, disable_ui=True,
            disable_fastapi_docs=True, disable_uvicorn_access_log=True, uvicorn_log_level="warning",
        )  # fmt: skip
        self._supervisor = Supervisor(engine_args, server_args)
        self._is_over = False

    def run(self) -> int:
        """The exit code of the server. Raises SetupError when it cannot start."""
        worker = threading.Thread(target=self._work, name="batch", daemon=True)
        worker.start()
        try:
            return self._supervisor.run()
        finally:
            self._is_over = True
            worker.join()

    def _work(self) -> None:
        """Answers the file, then stops the server as Ctrl-C would."""
        try:
            while self._supervisor.url is None and not self._is_over:
                time.sleep(0.01)
            poster = Poster(self._supervisor.url or "", self._key)
            poster.wait_ready(lambda: self._is_over)
            self._answer(poster)
            self.is_done = True
        except OSError as error:
            self.error = ConfigError(f"{error.filename}: {os.strerror(error.errno or 0)}")
        except QuireError as error:
            self.error = None if self._is_over else error  # the supervisor's own error says more
        finally:
            if not self._is_over:
                signal.raise_signal(signal.SIGTERM)

    def _answer(self, poster: Poster) -> None:
        counts = Counts()
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._tmp_dir) if self._tmp_dir else contextlib.nullcontext() as folder:
            path = Path(folder) / self._target.name if folder else self._target
            with open(self._source, encoding="utf-8", errors="replace") as lines, open(path, "wb") as out:
                rows = answer_all(lines, poster.post, self._num_threads, counts)
                for row in tqdm(rows, unit=" requests", disable=not sys.stderr.isatty()):
                    out.write(msgspec.json.encode(row) + b"\n")
                    out.flush()  # what is answered stays, whatever happens next
            if folder:
                shutil.move(path, self._target)
        took_s = time.monotonic() - began
        print(f"{counts.answered} requests answered, {counts.refused} refused, in {took_s:.1f} s: {self._target}")


def _file(name: str | None, flag: str) -> Path:
    if not name:
        raise ConfigError(f"{flag} is needed")
    if name.startswith(("http://", "https://")):
        raise ConfigError(
            f"{flag} {name}: files of the web are not read or written here; download or upload them yourself"
        )
    return Path(name).expanduser()
