"""Speed of the engine on one GPU, random weights: the calls that the peers are measured by, in the same order.

    python benchmarks/gpu_smoke.py [SHAPE...] [--eager] [--quick] [--out FILE.json]

A decode step is the difference of two whole calls (long output minus short output) over the extra tokens, so that prefill and call
overhead cancel. Each shape runs in a process of its own, so that start-up is measured as a user meets it.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import shapes

REPEATS = 3


def measure(shape: str, eager: bool, quick: bool) -> dict[str, Any]:
    """All figures of one shape, in this process."""
    start = time.time()
    from quire import LLM, SamplingParams  # imported here because its time is measured

    imported = time.time()
    llm = LLM(
        model=shapes.write_config(shape, tempfile.mkdtemp()), load_format="dummy", skip_tokenizer_init=True, seed=0,
        dtype="bfloat16", gpu_memory_utilization=0.9, max_model_len=16_384, enforce_eager=eager, disable_log_stats=True,
    )  # fmt: skip
    ready = time.time()
    result: dict[str, Any] = {"engine": "quire", "shape": shape, "eager": eager}
    result |= {"import_s": imported - start, "init_s": ready - imported}
    rng = shapes.np.random.default_rng(0)
    vocab = min(150_000, shapes.SHAPES[shape]["vocab_size"])

    def prompts(count: int, length: int) -> list[dict[str, list[int]]]:
        return [{"prompt_token_ids": shapes.random_ids(rng, length, vocab)} for _ in range(count)]

    def run(inputs: list[dict[str, list[int]]], lengths: list[int], temperature: float = 0.0) -> float:
        params = [
            SamplingParams(temperature=temperature, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths
        ]
        begin = time.perf_counter()
        llm.generate(inputs, params, use_tqdm=False)
        return time.perf_counter() - begin

    run(prompts(1, 16), [8])
    result["first_token_s"] = time.time() - start
    run(prompts(1, 128), [4])
    for batch in (1,) if quick else (1, 8, 64, 256):
        run(prompts(batch, 128), [4] * batch)
        steps = [
            (run(prompts(batch, 128), [144] * batch) - run(prompts(batch, 128), [16] * batch)) / 128
            for _ in range(REPEATS)
        ]
        result[f"decode_b{batch}_ms"] = 1e3 * statistics.median(steps)
        print_line(result, f"decode_b{batch}_ms")
    if not quick:
        run(prompts(2, 8192), [1] * 2)
        result["prefill_tok_s"] = 16 * 8192 / run(prompts(16, 8192), [1] * 16)
        result["ttft_1k_ms"] = 1e3 * statistics.median(run(prompts(1, 1024), [1]) for _ in range(5))
        print_line(result, "prefill_tok_s", "ttft_1k_ms")
        num_in, num_out = shapes.chat_lengths()
        for temperature in (0.0, 1.0):
            inputs = [{"prompt_token_ids": shapes.random_ids(rng, n, vocab)} for n in num_in]
            seconds = run(inputs, num_out, temperature)
            name = f"chat_t{temperature:g}"
            result[name] = {"seconds": seconds, "req_s": len(num_in) / seconds, "out_tok_s": sum(num_out) / seconds}
            print_line(result, name)
    return result


def print_line(result: dict[str, Any], *names: str) -> None:
    print(result["shape"], "eager" if result["eager"] else "", {name: result[name] for name in names}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="0.5b 1.5b 7b; default: all")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--quick", action="store_true", help="start-up and batch-1 decode only")
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--here", action="store_true", help="measure in this process and print one RESULT line")
    options = parser.parse_args()
    if options.here:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        print("RESULT", json.dumps(measure(options.shapes[0], options.eager, options.quick)), flush=True)
        return
    results = []
    flags = [flag for flag, on in (("--eager", options.eager), ("--quick", options.quick)) if on]
    for shape in options.shapes or ["0.5b", "1.5b", "7b"]:
        command = [sys.executable, os.path.abspath(__file__), shape, "--here", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith("RESULT "):
                    results.append(json.loads(line.removeprefix("RESULT ")))
        if options.out:
            with open(options.out, "w") as file:
                json.dump(results, file, indent=1)
    print_table(results)


def print_table(results: list[dict[str, Any]]) -> None:
    """One column a shape."""
    flat = [
        {k: v["req_s"] if isinstance(v, dict) else v for k, v in r.items() if not isinstance(v, str | bool)}
        for r in results
    ]
    for name in flat[0] if flat else ():
        print(f"{name:16s}" + "".join(f"{r[name]:12.3f}" for r in flat))


if __name__ == "__main__":
    main()
