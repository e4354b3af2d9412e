"""CPU benchmark: quire beside transformers' generate, same random weights, same prompts, one run.

    python benchmarks/cpu_versus_transformers.py [--requests 64] [--hf-batches 16,64] [--out benchmarks/results/cpu.json]

Two workloads on Qwen2.5-0.5B shapes in bf16: one request (128 tokens in, 128 out), and chat-shaped requests all there at once.
transformers gets them in static padded batches, sorted by output length (its best case), each of the sizes given; the best counts.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import shapes
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quire import LLM, SamplingParams
from quire.cgroup import num_cpus

SHAPE = "0.5b"
NUM_IN, NUM_OUT, RUNS = 128, 128, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--hf-batches", default="16")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(num_cpus())
    with tempfile.TemporaryDirectory() as root:
        folder = shapes.write_config(SHAPE, root)
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        hf.save_pretrained(folder)
        llm = LLM(model=folder, skip_tokenizer_init=True, max_model_len=4096, enable_prefix_caching=False)
        rows = [batch_one(hf.eval(), llm), *chat(hf, llm, args.requests, [int(b) for b in args.hf_batches.split(",")])]
    result = {
        "machine": machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "shape": SHAPE,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


def batch_one(hf: Any, llm: LLM) -> dict[str, Any]:
    """Decode speed of one request: a long call minus a short one, so that prefill and call overhead cancel."""
    prompt = shapes.random_ids(np.random.default_rng(0), NUM_IN)

    def ours(count: int) -> list[int]:
        return quire_run(llm, [prompt], [count])[0]

    def theirs(count: int) -> list[int]:
        return hf_run(hf, [prompt], count)[0]

    rates = {}
    for name, call in (("quire", ours), ("transformers", theirs)):
        call(8)
        rates[name] = statistics.median(NUM_OUT / (seconds(call, NUM_OUT + 8) - seconds(call, 8)) for _ in range(RUNS))
    ratio = rates["quire"] / rates["transformers"]
    return {"workload": "decode_b1", "unit": "tokens/s", **rates, "ratio": ratio}


def chat(hf: Any, llm: LLM, requests: int, hf_batches: list[int]) -> list[dict[str, Any]]:
    """Output tokens a second over chat-shaped requests."""
    rng = np.random.default_rng(1)
    lengths_in, lengths_out = shapes.chat_lengths(requests)
    prompts = [shapes.random_ids(rng, n) for n in lengths_in]
    total = sum(lengths_out)
    ours = total / seconds(lambda: quire_run(llm, prompts, lengths_out))
    order = sorted(range(requests), key=lambda i: lengths_out[i])
    theirs = {}
    for size in hf_batches:
        groups = [order[i : i + size] for i in range(0, requests, size)]
        theirs[size] = total / seconds(
            lambda groups=groups: [hf_run(hf, [prompts[i] for i in g], max(lengths_out[i] for i in g)) for g in groups]
        )
    best = max(theirs.values())
    return [
        {
            "workload": f"chat_{requests}", "unit": "output tokens/s", "quire": ours, "transformers": best, "ratio": ours / best,
            "transformers_by_batch": theirs, "tokens_in": sum(lengths_in), "tokens_out": total,
        }
    ]  # fmt: skip


def quire_run(llm: LLM, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
    """Greedy continuations of exactly `counts` tokens."""
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in counts]
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [o.outputs[0].token_ids for o in outputs]


@torch.inference_mode()
def hf_run(hf: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The same by transformers: left-padded, static batch, `count` tokens for each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = hf.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    rows: list[list[int]] = out[:, width:].tolist()
    return rows


def seconds(call: Callable[..., Any], *args: Any) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def machine() -> str:
    """Processor, cores and library versions."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return f"{model or platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Short hash of the checkout."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()


if __name__ == "__main__":
    main()
