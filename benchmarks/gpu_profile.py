"""Where a step's time goes on one GPU: kernels of decoding steps, prefill and a single prompt, and what the host does meanwhile.

    python benchmarks/gpu_profile.py [SHAPE...] [--eager] [--top N]

For each part: wall time a call, time the device was busy, and the kernels by their share. Times of kernels under the profiler are a
little longer than without it.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import shapes


def device_kernels(call: Callable[[], Any]) -> dict[str, tuple[int, float]]:
    """Kernel name -> (calls, microseconds) of one call of `call`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace, contextlib.redirect_stderr(io.StringIO()):
        call()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count, total = found[event.name]
            found[event.name] = count + 1, total + event.device_time
    return found


def show(label: str, wall_ms: float, kernels: dict[str, tuple[int, float]], steps: int, top: int) -> None:
    busy_ms = sum(us for _, us in kernels.values()) / 1e3
    count = sum(n for n, _ in kernels.values())
    print(f"-- {label}: wall {wall_ms / steps:.3f} ms, kernels {busy_ms / steps:.3f} ms, {count / steps:.0f} launches")
    for name, (n, us) in sorted(kernels.items(), key=lambda item: -item[1][1])[:top]:
        print(f"   {us / steps:9.1f} us {n / steps:7.1f} x {us / n:8.2f}  {name[:88]}")


def timed_ms(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def measure(shape: str, eager: bool, top: int) -> None:
    from quire import LLM, SamplingParams

    llm = LLM(
        model=shapes.write_config(shape, tempfile.mkdtemp()), load_format="dummy", skip_tokenizer_init=True, seed=0,
        dtype="bfloat16", gpu_memory_utilization=0.9, max_model_len=16_384, enforce_eager=eager, disable_log_stats=True,
    )  # fmt: skip
    rng = shapes.np.random.default_rng(0)

    def run(batch: int, length: int, tokens: int) -> Callable[[], Any]:
        prompts = [{"prompt_token_ids": shapes.random_ids(rng, length)} for _ in range(batch)]
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return lambda: llm.generate(prompts, params, use_tqdm=False)

    print(f"== {shape}")
    for batch in (1, 8, 64, 256):
        run(batch, 128, 12)()
        long, short = run(batch, 128, 65), run(batch, 128, 1)
        wall_ms = timed_ms(long) - timed_ms(short)
        total, prefill = device_kernels(run(batch, 128, 65)), device_kernels(run(batch, 128, 1))
        decode = {
            name: (n - prefill.get(name, (0, 0))[0], us - prefill.get(name, (0, 0.0))[1])
            for name, (n, us) in total.items()
        }
        decode = {name: (n, us) for name, (n, us) in decode.items() if n > 0}
        show(f"{shape} decode batch {batch}", wall_ms, decode, 64, top)
    for batch, length in ((1, 1024), (8, 8192)):
        run(batch, length, 1)()
        wall_ms = min(timed_ms(run(batch, length, 1)) for _ in range(3))
        show(f"{shape} prefill {batch} x {length}", wall_ms, device_kernels(run(batch, length, 1)), 1, top)
    llm.llm_engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="0.5b 1.5b 7b; default: 0.5b")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--top", type=int, default=12, help="kernels to list a part")
    options = parser.parse_args()
    for shape in options.shapes or ["0.5b"]:
        measure(shape, options.eager, options.top)


if __name__ == "__main__":
    main()
