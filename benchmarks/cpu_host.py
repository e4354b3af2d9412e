"""What the host does in the workloads of versus_workloads.py, measured without a GPU: all of quire is there but the model.

    python benchmarks/cpu_host.py [WORKLOAD...] [--runs N] [--profile FILE]

The device is a clock. What it is asked for takes about what an H200 takes with the 0.5B model (the tables below), and the host's time is
processor time of its thread, so that other work on the machine hardly shows. A line a call of `generate`, in ms:

    wall     all of it, on that clock
    before   until the device is first asked for anything
    idle     time between works of the device in which it has none
    after    from the end of its last work until the call returns
    host     processor time of the thread, without that of launches and captures
"""

import argparse
import cProfile
import json
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import shapes
import torch
from versus_engines import Engine, Prompts, Quire
from versus_workloads import FULL, TINY, WORKLOADS, Bench, first_token

from quire.config import MachineFacts
from quire.platform.cpu import CpuPlatform
from quire.runner.device_sampler import DeviceSampler

NAMES = ("prefill", "ttft_1k", "chat", "sampling_cost", "prefix_groups", "prefix_turns")
# Of an H200, with the 0.5B model.
LIMITS = {"num_gpu_blocks_override": 600_000, "max_num_seqs": 1024, "max_num_batched_tokens": 16_384}
STEP_MS = {1: 0.43, 8: 0.72, 64: 0.83, 256: 1.3, 512: 2.0, 1024: 3.4}  # decoding, by rows
TOKENS_A_MS = 500  # of prompts
# Of its host: all kernels of a step launched one by one, where no graph is; and a capture.
LAUNCH_S = 0.010
CAPTURE_S = 0.010


class Clock:
    """The host's time and the device's, in seconds."""

    def __init__(self) -> None:
        self._done_for_device_s = 0.0
        self._added_s = 0.0  # waits, launches and captures
        self.inside_graph = False
        self.asked_s = 0.0  # by a step inside a graph
        self.restart()

    def restart(self) -> None:
        """A call begins."""
        self.begin_s, self._begin_host_s = self.now(), self.host_s()
        self.first_s: float | None = None
        self.busy_until_s = self.idle_s = 0.0
        self.num_works = 0

    def host_s(self) -> float:
        return time.thread_time() - self._done_for_device_s

    def now(self) -> float:
        return self.host_s() + self._added_s

    def ask(self, seconds: float, launch_s: float = 0.0) -> None:
        """The device is asked for work that takes so long, and the host so long to ask for."""
        now = self.now()
        if self.first_s is None:
            self.first_s = self.busy_until_s = now
        self.idle_s += max(0.0, now - self.busy_until_s)
        self.busy_until_s = max(now, self.busy_until_s) + max(seconds, launch_s)
        self._added_s += launch_s
        self.num_works += 1

    def pass_until(self, moment_s: float) -> None:
        self._added_s += max(0.0, moment_s - self.now())

    @contextmanager
    def device(self) -> Iterator[None]:
        """What happens inside costs the host nothing."""
        begin = time.thread_time()
        try:
            yield
        finally:
            self._done_for_device_s += time.thread_time() - begin

    def figures(self) -> dict[str, float]:
        now = self.now()
        seconds = {
            "wall": now - self.begin_s,
            "before": (self.first_s or now) - self.begin_s,
            "idle": self.idle_s,
            "after": now - self.busy_until_s,
            "host": self.host_s() - self._begin_host_s,
        }
        return {**{name: round(1e3 * value, 2) for name, value in seconds.items()}, "works": self.num_works}


class Mark:
    """A place in the device's work."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._moment_s = clock, clock.busy_until_s

    def wait(self) -> None:
        self._clock.pass_until(self._moment_s)


class Graph:
    """A captured step: a function, and a clock that moves on."""

    pool = "pool"

    def __init__(self, clock: Clock, work: Callable[[], None]) -> None:
        self._clock, self._work = clock, work

    def replay(self) -> None:
        clock = self._clock
        with clock.device():
            clock.inside_graph = True
            self._work()
            clock.inside_graph = False
        clock.ask(clock.asked_s)

    def close(self) -> None:
        return


class Gpu(CpuPlatform):
    """A CPU that says it captures graphs."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def facts(self) -> MachineFacts:
        return MachineFacts("cpu", "a clock", 2**40, 2**40)

    def supports_graphs(self) -> bool:
        return True

    def mark(self) -> Mark:
        return Mark(self._clock)

    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Graph:
        graph = Graph(self._clock, work)
        graph.replay()
        self._clock.pass_until(self._clock.now() + CAPTURE_S)
        return graph


class Nothing:
    """A model that computes nothing and always chooses token 0."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, input_ids: torch.Tensor, fwd: Any) -> torch.Tensor:
        clock = self._clock
        clock.asked_s = step_s(fwd)
        if not clock.inside_graph:
            clock.ask(clock.asked_s, LAUNCH_S)
        with clock.device():
            return torch.zeros(fwd.num_tokens if fwd.last_rows is None else fwd.num_sequences, 1)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), dtype=torch.int64)


def sample_nothing() -> None:
    """Sampling chooses token 0 from now on, whatever it is asked for, and counts nothing."""

    def choose(sampler: DeviceSampler, logits: torch.Tensor, *more: Any) -> torch.Tensor:
        return torch.zeros(len(logits), dtype=torch.int64)

    def make_tables(sampler: DeviceSampler, num_rows: int) -> None:
        sampler._seen, sampler._counts = sampler._seen.new_zeros(num_rows, 1), sampler._counts.new_zeros(num_rows, 1)

    for call in (choose, make_tables):
        setattr(DeviceSampler, call.__name__, call)
    DeviceSampler.count = lambda *more: None  # type: ignore[method-assign]


def step_s(fwd: Any) -> float:
    """Seconds that a step takes the device."""
    sizes = sorted(STEP_MS)
    step_ms = STEP_MS[sizes[min(bisect_left(sizes, fwd.num_sequences), len(sizes) - 1)]]
    return 1e-3 * (step_ms if fwd.only_decodes else max(1.0, fwd.num_tokens / TOKENS_A_MS))


class Watched:
    """An engine whose calls are measured one by one."""

    def __init__(self, engine: Engine, clock: Clock, profile: cProfile.Profile | None) -> None:
        self._engine, self._clock, self._profile = engine, clock, profile
        self.close = engine.close

    def generate(self, prompts: Prompts, lengths: list[int], sampling: dict[str, Any]) -> tuple[float, Prompts]:
        call, found = self._engine.llm.generate, {}

        def generate(*args: Any, **named: Any) -> Any:
            self._clock.restart()
            if self._profile is not None:
                self._profile.enable()
            outputs = call(*args, **named)
            if self._profile is not None:
                self._profile.disable()
            found.update(self._clock.figures())
            return outputs

        with mock.patch.object(self._engine.llm, "generate", generate):
            _, outputs = self._engine.generate(prompts, lengths, sampling)
        print(json.dumps({"requests": len(prompts), **found}), flush=True)
        return max(found["wall"], 1e-3) / 1e3, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--runs", type=int, default=2, help="of each workload, one after the other")
    parser.add_argument("--tiny", action="store_true", help="small workloads, for tests")
    parser.add_argument("--profile", help="write cProfile's figures of the last workload to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    gpu = Gpu(clock)
    folder = Path(tempfile.mkdtemp())
    sizes = shapes.sizes(64, 1, 2, 1, 64, shapes.SHAPES["0.5b"]["vocab_size"], True)
    (folder / "config.json").write_text(json.dumps({**shapes.COMMON, **sizes}))
    with (
        mock.patch("quire.setup.select_platform", lambda device: gpu),
        mock.patch("quire.engine.engine.select_platform", lambda device: gpu),
    ):
        engine = Quire(str(folder), FULL.max_model_len, False, LIMITS)
    runner = engine.llm.llm_engine.engine.runner
    runner.model = Nothing(clock)
    runner.whole = type(runner.whole).__new__(type(runner.whole))
    runner.whole._step = runner.whole._layers = runner.whole._net = None
    sample_nothing()
    profile = cProfile.Profile(timer=clock.host_s) if options.profile else None
    scale = TINY if options.tiny else FULL
    rng = shapes.np.random.default_rng(0)
    print("start", flush=True)
    bench = Bench(Watched(engine, clock, None), scale, 150_000, rng)
    first_token(bench)
    bench.run(bench.prompts(1, 128), [4])
    for name in options.workloads or NAMES:
        for number in range(options.runs):
            watched = Watched(engine, clock, profile if number == options.runs - 1 else None)
            print(f"{name}, run {number + 1}", flush=True)
            figures = WORKLOADS[name](Bench(watched, scale, 150_000, rng))
            print(json.dumps(figures), flush=True)
    if profile is not None:
        profile.dump_stats(options.profile)
    engine.close()


if __name__ == "__main__":
    main()
