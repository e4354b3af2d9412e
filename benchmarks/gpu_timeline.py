"""Where the time of the chat workload goes: what the host did in each step, what the device did, and when it had nothing to do.

    python benchmarks/gpu_timeline.py [SHAPE...] [--temperature T | --sampled] [--runs N] [--requests N] [--csv FILE]
        [--seats N] [--step-tokens N] [--longest-first]

A line for each kind of step: how many, tokens, milliseconds of the device and of gaps before it, and the host's milliseconds by part
(a part's time is without that of parts inside it). The device's time of a step lies between two events around what was asked of it.
"""

import argparse
import csv
import gc
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import shapes

SAMPLED = {
    "temperature": 1.0, "top_p": 0.9, "top_k": 50, "presence_penalty": 0.3, "frequency_penalty": 0.3,
    "repetition_penalty": 1.1, "logprobs": 5,
}  # fmt: skip
WAITING = ("finish.wait", "execute.wait")


@dataclass
class Work:
    """What the device was asked for at once."""

    kind: str
    rows: int
    tokens: int
    steps: int
    begin: Any
    end: Any


@dataclass
class Timeline:
    """Host seconds by part, and the work of the device in order."""

    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    works: list[Work] = field(default_factory=list)
    _inside: list[float] = field(default_factory=list)

    def enter(self) -> float:
        self._inside.append(0.0)
        return time.perf_counter()

    def leave(self, part: str, begin: float) -> None:
        whole = time.perf_counter() - begin
        self.parts[part] += whole - self._inside.pop()
        self.calls[part] += 1
        if self._inside:
            self._inside[-1] += whole

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            begin = self.enter()
            try:
                return call(*args, **named)
            finally:
                self.leave(part, begin)

        return run

    def asked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Puts events around what a method of the runner asks the device for."""
        import torch

        def run(runner: Any, batch: Any) -> Any:
            if not batch.scheduled:
                return call(runner, batch)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            result = call(runner, batch)
            end.record()
            rows, tokens = len(batch.scheduled), batch.num_tokens
            kind = "decode" if batch.decode_steps else "single" if tokens == rows else "prompt"
            self.works.append(Work(kind, rows, tokens, max(1, batch.decode_steps), begin, end))
            return result

        return run


def watch(timeline: Timeline) -> None:
    """Wraps the calls of a step, for the rest of this process."""
    from quire.core.scheduler import Scheduler
    from quire.engine.engine import Engine
    from quire.engine.llm_engine import LLMEngine
    from quire.platform.cuda import CudaMark, CudaPlatform
    from quire.runner.model_runner import ModelRunner
    from quire.runner.transfer import OneCopy

    methods = {
        "advance": (LLMEngine, "advance"),
        "deliver": (LLMEngine, "_deliver"),
        "step": (Engine, "step"),
        "schedule": (Scheduler, "schedule"),
        "schedule ahead": (Scheduler, "schedule_ahead"),
        "commit": (Scheduler, "commit"),
        "take in": (ModelRunner, "_take_in"),
        "capture": (CudaPlatform, "capture_graph"),
        "finish.wait": (CudaMark, "wait"),
        "execute.wait": (OneCopy, "fetch"),
        "start": (ModelRunner, "start"),
        "finish": (ModelRunner, "finish"),
        "execute": (ModelRunner, "execute"),
    }
    for name in ("start", "execute"):
        setattr(ModelRunner, name, timeline.asked(getattr(ModelRunner, name)))
    for part, (owner, name) in methods.items():
        setattr(owner, name, timeline.timed(part, getattr(owner, name)))
    began = []

    def collecting(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            began.append(timeline.enter())
        else:
            timeline.leave("garbage", began.pop())

    gc.callbacks.append(collecting)


def bucket(work: Work) -> tuple[str, int]:
    """Kind and size of a step: rows rounded up to a power of two, tokens for those with prompts."""
    count = work.tokens if work.kind == "prompt" else work.rows
    return f"{work.kind} x{work.steps}" if work.kind == "decode" else work.kind, 1 << (count - 1).bit_length()


def report(timeline: Timeline, wall_s: float, path: str | None) -> None:
    import torch

    torch.cuda.synchronize()
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0])
    last, lines = None, []
    for work in timeline.works:
        gap = last.elapsed_time(work.begin) if last is not None else 0.0
        busy = work.begin.elapsed_time(work.end)
        last = work.end
        entry = sums[bucket(work)]
        for i, value in enumerate((1, work.steps, work.tokens, busy, gap)):
            entry[i] += value
        lines.append((work.kind, work.rows, work.tokens, work.steps, round(busy, 3), round(gap, 3)))
    print(
        f"   {'kind':12s} {'size':>6s} {'batches':>8s} {'steps':>6s} {'tokens':>8s} {'device ms':>10s} {'a step':>8s} {'gaps ms':>8s}"
    )
    for (kind, size), (count, steps, tokens, busy, gap) in sorted(sums.items()):
        print(
            f"   {kind:12s} {size:6d} {count:8.0f} {steps:6.0f} {tokens:8.0f} {busy:10.1f} {busy / steps:8.3f} {gap:8.1f}"
        )
    busy, gaps = sum(e[3] for e in sums.values()), sum(e[4] for e in sums.values())
    print(
        f"   wall {1e3 * wall_s:.0f} ms, device {busy:.0f}, gaps {gaps:.0f} (before the first and after the last work not counted)"
    )
    for part, seconds in sorted(timeline.parts.items(), key=lambda item: -item[1]):
        waits = "   (device)" if part in WAITING else ""
        print(f"   host {1e3 * seconds:9.1f} ms {timeline.calls[part]:7d} x  {part}{waits}")
    if path:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("kind", "rows", "tokens", "steps", "device_ms", "gap_ms"), *lines])


def measure(shape: str, options: argparse.Namespace) -> None:
    from quire import LLM, SamplingParams

    llm = LLM(
        model=shapes.write_config(shape, tempfile.mkdtemp()), load_format="dummy", skip_tokenizer_init=True, seed=0,
        dtype="bfloat16", gpu_memory_utilization=0.9, max_model_len=16_384, disable_log_stats=True,
    )  # fmt: skip
    rng = shapes.np.random.default_rng(0)
    num_in, num_out = shapes.chat_lengths(options.requests)
    timeline = Timeline()
    watch(timeline)

    scheduler = llm.llm_engine.engine.scheduler

    kinds = {"greedy": {"temperature": 0.0}, "sampled": SAMPLED}
    if not options.sampled:
        kinds = {f"temperature {options.temperature}": {"temperature": options.temperature}}

    def run(lengths_in: list[int], lengths_out: list[int], more: dict[str, Any]) -> float:
        inputs = [{"prompt_token_ids": shapes.random_ids(rng, n)} for n in lengths_in]
        params = [SamplingParams(max_tokens=n, ignore_eos=True, detokenize=False, **more) for n in lengths_out]
        for store in (timeline.parts, timeline.calls, timeline.works):
            store.clear()
        begin = time.perf_counter()
        llm.generate(inputs, params, use_tqdm=False)
        return time.perf_counter() - begin

    for more in kinds.values():
        run([16], [8], more)
        run([128], [40], more)
    if options.longest_first:
        order = sorted(range(len(num_out)), key=lambda i: -num_out[i])
        num_in, num_out = [num_in[i] for i in order], [num_out[i] for i in order]
    bounds = {"max_num_seqs": options.seats, "max_num_batched_tokens": options.step_tokens}
    scheduler.config = replace(scheduler.config, **{name: value for name, value in bounds.items() if value})
    for number, (kind, more) in product(range(options.runs), kinds.items()):
        seconds = run(num_in, num_out, more)
        print(
            f"== {shape}, {kind}, run {number + 1}: {seconds:.3f} s, {len(num_in) / seconds:.1f} requests/s", flush=True
        )
        report(timeline, seconds, options.csv and f"{options.csv}.{shape}.{kind}.{number + 1}.csv")
    llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="0.5b 1.5b 7b; default: 0.5b")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--sampled", action="store_true", help="greedy, and beside it with every kind of sampling option"
    )
    parser.add_argument("--runs", type=int, default=2, help="the first one captures graphs on its way")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seats", type=int, help="sequences computed at once")
    parser.add_argument("--step-tokens", type=int, help="tokens computed in one step")
    parser.add_argument("--longest-first", action="store_true", help="requests in falling order of output length")
    parser.add_argument("--csv", help="write a line a step to FILE.SHAPE.KIND.RUN.csv")
    options = parser.parse_args()
    for shape in options.shapes or ["0.5b"]:
        measure(shape, options)


if __name__ == "__main__":
    main()
