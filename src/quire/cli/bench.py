"""`quire bench latency|throughput`: measures this machine through the same LLM.generate that users call. `quire bench serve`: a server.
`quire bench startup`: the start."""

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.bench.options import ServeBenchArgs, with_meant_dataset, without_effect
from quire.bench.startup import StartupArgs
from quire.bench.startup import run as run_startup
from quire.cli.args import Parser, parse, refuse_given
from quire.config import EngineArgs, option
from quire.core.params import SamplingParams
from quire.errors import ConfigError
from quire.llm import LLM

HELP = "measure latency, throughput or start-up, or a running server"


@dataclass
class LatencyArgs:
    """Options of `quire bench latency`; names and defaults are those of vLLM's."""

    input_len: int = option(32, "prompt tokens of each sequence")
    output_len: int = option(128, "tokens generated for each")
    batch_size: int = option(8, "sequences at once")
    num_iters_warmup: int = option(2, "runs before the clock starts")
    num_iters: int = option(5, "runs measured")
    output_json: str | None = option(None, "file for the result")


@dataclass
class ThroughputArgs:
    """Options of `quire bench throughput`."""

    num_prompts: int = option(100, "requests")
    input_len: int = option(220, "mean prompt tokens; lengths are log-normal around it")
    output_len: int = option(200, "mean generated tokens; lengths are log-normal around it")
    output_json: str | None = option(None, "file for the result")


def main(argv: Sequence[str]) -> int:
    """Runs one of the benchmarks."""
    kinds = {"latency": latency, "throughput": throughput, "serve": serve, "startup": startup}
    words = list(argv)
    if not words or words[0] not in kinds:
        if words and words[0] in ("-h", "--help"):
            print("usage: quire bench {latency,throughput,serve,startup} [options]; each has --help")
            return 0
        raise ConfigError(f"bench what? say one of {', '.join(kinds)}, such as `quire bench latency`")
    return kinds[words[0]](words[1:])


def latency(argv: list[str]) -> int:
    """Seconds of a whole batch, prompt to last token."""
    (engine, args), _ = parse(Parser(prog="quire bench latency"), argv, [EngineArgs, LatencyArgs])
    llm = LLM(**vars(engine))
    rng = random.Random(0)
    params = SamplingParams(temperature=0.0, max_tokens=args.output_len, ignore_eos=True, detokenize=False)

    def once() -> float:
        prompts = [{"prompt_token_ids": _token_ids(rng, llm, args.input_len)} for _ in range(args.batch_size)]
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    for _ in range(args.num_iters_warmup):
        once()
    seconds = [once() for _ in range(args.num_iters)]
    mean = statistics.mean(seconds)
    result = {
        "avg_latency_s": mean,
        "min_latency_s": min(seconds),
        "max_latency_s": max(seconds),
        "output_tokens_per_second": args.batch_size * args.output_len / mean,
    }
    print(f"Avg latency: {mean:.4f} seconds (min {min(seconds):.4f}, max {max(seconds):.4f}, {args.num_iters} runs)")
    print(f"Output: {result['output_tokens_per_second']:.1f} tokens/s at batch size {args.batch_size}")
    return _save({"benchmark": "latency", **vars(args), **result}, args.output_json)


def throughput(argv: list[str]) -> int:
    """Requests and tokens a second over many requests of mixed lengths."""
    (engine, args), _ = parse(Parser(prog="quire bench throughput"), argv, [EngineArgs, ThroughputArgs])
    llm = LLM(**vars(engine))
    rng = random.Random(0)
    limit = llm.llm_engine.config.max_model_len
    pairs = [_lengths(rng, args.input_len, args.output_len, limit) for _ in range(args.num_prompts)]
    prompts = [{"prompt_token_ids": _token_ids(rng, llm, n)} for n, _ in pairs]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in pairs]
    llm.generate(prompts[:1], params[:1], use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    tokens_in, tokens_out = sum(n for n, _ in pairs), sum(len(o.outputs[0].token_ids) for o in outputs)
    result = {
        "elapsed_s": seconds,
        "requests_per_second": len(prompts) / seconds,
        "total_tokens_per_second": (tokens_in + tokens_out) / seconds,
        "output_tokens_per_second": tokens_out / seconds,
    }
    print(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, {result['total_tokens_per_second']:.1f} total "
        f"tokens/s, {result['output_tokens_per_second']:.1f} output tokens/s"
    )
    return _save({"benchmark": "throughput", **vars(args), **result}, args.output_json)


def serve(argv: list[str]) -> int:
    """What clients of a server see, under load."""
    from quire.bench.serve import run  # asyncio, tokenizers and tqdm, which the others have no use for

    parser = Parser(
        prog="quire bench serve", description="load on a server that speaks OpenAI's API, and what its clients see"
    )
    (args,), given = parse(parser, argv, [ServeBenchArgs], positional=None)
    args = with_meant_dataset(args, vars(given))
    for name, why in without_effect(args):
        refuse_given(given, (name,), why)
    return run(args)


def startup(argv: list[str]) -> int:
    """Seconds from the start of a process to its first token, by phases."""
    (engine, args), _ = parse(Parser(prog="quire bench startup"), argv, [EngineArgs, StartupArgs])
    return run_startup(engine, args)


def _token_ids(rng: random.Random, llm: LLM, count: int) -> list[int]:
    return [rng.randrange(llm.llm_engine.frontend.vocab_size) for _ in range(count)]


def _lengths(rng: random.Random, mean_in: int, mean_out: int, limit: int) -> tuple[int, int]:
    """A log-normal prompt and output length (sigma 0.8, so the mean is exp(0.32) times the median) within the model length."""
    prompt = int(min(max(mean_in * rng.lognormvariate(-0.32, 0.8), 4), limit // 2))
    return prompt, int(min(max(mean_out * rng.lognormvariate(-0.32, 0.8), 4), limit - prompt))


def _save(result: dict[str, Any], path: str | None) -> int:
    if path:
        Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0
