"""Where a GPU's memory goes beside where it was planned to go, and starts that must not run out of it.

python benchmarks/gpu_memory.py [--out FILE.json]        ten models and flags: planned and measured peak under every kind of load
python benchmarks/gpu_memory.py --sweep [--seconds N]    models x lengths x shares x sequences: each starts and carries a full load,
                                                         or refuses with the arithmetic; nothing else may happen
python benchmarks/gpu_memory.py --held                   how much of the KV cache holds tokens while more requests wait than fit
"""

import argparse
import contextlib
import gc
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shapes
import torch

from quire import LLM, SamplingParams
from quire.errors import MemoryPlanError

GIB = 2.0**30
COMBINATIONS: list[tuple[str, dict[str, Any]]] = [
    ("0.5b", {}),
    ("0.5b", {"gpu_memory_utilization": 0.3, "max_num_seqs": 256, "max_num_batched_tokens": 8192}),
    (
        "0.5b",
        {"gpu_memory_utilization": 0.15, "max_model_len": 32_768, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "block_size": 32},
    ),
    ("1.5b", {"gpu_memory_utilization": 0.5, "max_num_seqs": 512}),
    ("1.5b", {"enforce_eager": True}),
    ("1.5b", {"gpu_memory_utilization": 0.2, "max_model_len": 4096, "max_num_seqs": 128, "max_num_batched_tokens": 4096}),
    ("7b", {}),
    ("7b", {"gpu_memory_utilization": 0.4, "max_num_seqs": 256, "max_num_batched_tokens": 8192}),
    (
        "7b",
        {"gpu_memory_utilization": 0.25, "enforce_eager": True, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "max_model_len": 8192},
    ),
    ("7b", {"gpu_memory_utilization": 0.6, "block_size": 64, "max_num_batched_tokens": 32_768, "max_model_len": 32_768}),
]  # fmt: skip
LOADS: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {"temperature": 0.0}),
    ("temperature", {"temperature": 1.0}),
    ("all sampling", {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "frequency_penalty": 0.1}),
    ("logprobs", {"temperature": 0.0, "logprobs": 5}),
]  # fmt: skip
HELD_BLOCKS = 8192  # of 16 tokens: some 350 of the chats fit
SHARES = (1.0, 0.12, 0.95, 0.105, 0.14, 0.02, 0.2, 0.5)  # full devices and those where a model just fits come first
SWEEP = [(m, s, n, k) for s, m, n, k in itertools.product(SHARES, ("7b", "0.5b", "1.5b"), (512, 32_768), (None, 8))]


class Watch:
    """The most memory of the device that is taken, by anyone, looked at every 2 ms."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, used_bytes())

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def used_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextmanager
def engine(shape: str, folder: str, **options: Any) -> Iterator[LLM]:
    """On random weights; nothing is left of it afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    llm = LLM(
        model=shapes.write_config(shape, folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
        disable_log_stats=True, enable_prefix_caching=False, **options,
    )  # fmt: skip
    try:
        yield llm
    finally:
        llm.llm_engine.close()


def run(llm: LLM, rng: Any, lengths: list[int], num_out: int, **sampling: Any) -> int:
    """How many requests did not get what they asked for."""
    inputs = [{"prompt_token_ids": shapes.random_ids(rng, n)} for n in lengths]
    params = SamplingParams(max_tokens=num_out, ignore_eos=True, detokenize=False, **sampling)
    return sum(len(o.outputs[0].token_ids) != num_out for o in llm.generate(inputs, params, use_tqdm=False))


def full_load(llm: LLM, length: int = 64) -> int:
    """The longest steps and the most sequences that there can be, with prompts of `length`, sampled in every way. Gives the number of
    failed requests."""
    config, rng = llm.llm_engine.config, shapes.np.random.default_rng(0)
    longest = min(config.max_num_batched_tokens // 2, config.max_model_len - 8)
    failed = run(llm, rng, [longest] * max(3, -(-config.max_num_batched_tokens // longest) + 1), 1, temperature=0.0)
    for _, sampling in LOADS:
        failed += run(llm, rng, [length] * config.max_num_seqs, 6, **sampling)
    return failed + run(llm, rng, [min(300, longest), 17], 3, temperature=0.0, prompt_logprobs=2)


def plans(folder: str) -> Iterator[dict[str, Any]]:
    """A row for each of the ten."""
    for shape, options in COMBINATIONS:
        gc.collect()
        torch.cuda.empty_cache()
        watch, before = Watch(), used_bytes()
        with contextlib.closing(watch), engine(shape, folder, **{"max_model_len": 16_384, **options}) as llm:
            plan = llm.llm_engine.engine.runner.plan
            failed = full_load(llm)
            torch.cuda.synchronize()
            peak = watch.peak - before
            yield {
                "shape": shape,
                "options": options,
                "in_use_before_gib": round(before / GIB, 3),
                "planned_gib": round(plan.total_bytes / GIB, 3),
                "kv_gib": round(plan.kv_bytes / GIB, 3),
                "peak_gib": round(peak / GIB, 3),
                "planned_over_peak": round(plan.total_bytes / peak, 4),
                "failed_requests": failed,
            }


def held(folder: str) -> dict[str, Any]:
    """A row: of the KV cache, the share that holds tokens of running requests, at each step while others wait."""
    lengths, outputs = shapes.chat_lengths(2000)
    rng, found = shapes.np.random.default_rng(0), []
    inputs = [{"prompt_token_ids": shapes.random_ids(rng, n)} for n in lengths]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in outputs]
    with engine("0.5b", folder, max_model_len=4096, num_gpu_blocks_override=HELD_BLOCKS) as llm:
        inner = llm.llm_engine.engine
        scheduler = inner.scheduler

        def watched(schedule: Any) -> Any:
            def look() -> Any:
                batch = schedule()
                if batch is not None and scheduler.stats().waiting:
                    tokens = sum(s.num_computed_tokens for s in scheduler._running.values())
                    found.append(tokens / inner.runner.plan.kv_tokens)
                return batch

            return look

        scheduler.schedule, scheduler.schedule_ahead = watched(scheduler.schedule), watched(scheduler.schedule_ahead)
        llm.generate(inputs, params, use_tqdm=False)
        preempted = scheduler.stats().num_preemptions
    quantiles = shapes.np.quantile(found, [0.05, 0.5, 0.95]).round(4).tolist()
    return {"steps": len(found), "blocks": HELD_BLOCKS, "5%, median, 95%": quantiles, "preemptions": preempted}


def sweep(folder: str, seconds: float) -> dict[str, Any]:
    """Prints what happened, and what should not have."""
    counts = {"started": 0, "refused": 0}
    wrong: list[Any] = []
    begun = 0
    deadline = time.monotonic() + seconds
    for case in SWEEP:
        if time.monotonic() > deadline:
            break
        begun += 1
        shape, share, length, seqs = case
        start = started = loaded = time.monotonic()
        try:
            with engine(shape, folder, max_model_len=length, max_num_seqs=seqs, gpu_memory_utilization=share) as llm:
                started = time.monotonic()
                failed = full_load(llm, 8)
                loaded = time.monotonic()
            counts["started"] += 1
            wrong += [(case, f"{failed} requests failed")] if failed else []
        except MemoryPlanError as error:
            counts["refused"] += 1
            wrong += [] if "To mend it" in str(error) else [(case, str(error))]
        except Exception as error:  # torch's out-of-memory among them: what the sweep is for
            wrong.append((case, f"{type(error).__name__}: {str(error)[:300]}"))
        parts = started - start, loaded - started, time.monotonic() - loaded
        print(f"{case}: {' + '.join(f'{s:.1f}' for s in parts)} s, {counts}, {len(wrong)} wrong", flush=True)
    print(f"{begun} of {len(SWEEP)} cases: {counts}; wrong: {wrong or 'none'}", flush=True)
    return {"cases": begun, "of": len(SWEEP), **counts, "wrong": [str(w) for w in wrong]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the rows as JSON")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--seconds", type=float, default=600, help="of the sweep: no case begins later")
    options = parser.parse_args()
    ones = torch.ones(16, 16, device="cuda", dtype=torch.bfloat16)
    torch.mm(ones, ones)  # so that what the libraries take counts as taken before
    torch.cuda.synchronize()
    folder = tempfile.mkdtemp()
    if options.held:
        row = held(folder)
        print(row, flush=True)
        save(options, {"held": row})
    if options.sweep:
        save(options, {"sweep": sweep(folder, options.seconds)})
    if options.held or options.sweep:
        return
    rows = []
    for row in plans(folder):
        rows.append(row)
        print(row, flush=True)
        save(options, {"rows": rows})
    shares = [r["planned_over_peak"] for r in rows]
    print(f"planned over measured: {min(shares)} to {max(shares)}")


def save(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes --out, or adds to what it holds."""
    if not options.out:
        return
    path = Path(options.out)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    head = {"machine": machine, "commit": options.commit, "date": time.strftime("%Y-%m-%d"), "what": __doc__}
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **head, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
