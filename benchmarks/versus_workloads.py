"""The workloads, each a function of an engine that gives figures; and the two sizes that they come in."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shapes
from versus_engines import GREEDY, Engine, Open, Prompts

REPEATS = 3
TURNS = 8
Figures = dict[str, Any]
SAMPLING = {  # what a chat may ask of the sampler, alone and together
    "temperature": {"temperature": 1.0},
    "filters": {"temperature": 1.0, "top_p": 0.9, "top_k": 50},
    "penalties": {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "seeds": {"temperature": 1.0, "seed": True},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "all": {
        "temperature": 1.0, "top_p": 0.9, "top_k": 50, "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "repetition_penalty": 1.1, "seed": True, "logprobs": 5,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Sizes of the workloads, in tokens and requests."""

    max_model_len: int = 16_384
    decode: tuple[int, int, int] = (128, 16, 144)  # prompt; the shorter and the longer output
    prefill: tuple[int, int] = (16, 8192)  # prompts, tokens of each
    ttft: int = 1024
    chat: int = 1000  # requests
    groups: tuple[int, int, int, int, int] = (64, 16, 2048, 128, 64)  # groups, requests of each, shared, own, output
    turns: tuple[int, int, int] = (64, 128, 128)  # conversations, new tokens a turn, output a turn
    mixed: tuple[int, int, int, int] = (64, 128, 8, 8192)  # decoders, their prompt, long prompts, tokens of each
    mixed_gap: int = 64  # tokens that decoders make between two long prompts


FULL = Scale()
TINY = Scale(512, (8, 2, 10), (2, 64), 32, 12, (3, 2, 32, 4, 3), (3, 4, 4), (3, 8, 2, 64), 4)  # for tests, on a CPU


@dataclass
class Bench:
    """An engine, random numbers, and how large everything is."""

    engine: Engine
    scale: Scale
    vocab: int
    rng: Any

    def prompts(self, count: int, length: int) -> Prompts:
        return [shapes.random_ids(self.rng, length, self.vocab) for _ in range(count)]

    def run(self, prompts: Prompts, lengths: list[int], sampling: dict[str, Any] = GREEDY) -> float:
        """Seconds; every request must have got the tokens it asked for."""
        seconds, outputs = self.engine.generate(prompts, lengths, sampling)
        if [len(o) for o in outputs] != lengths:
            raise RuntimeError("the engine made another number of tokens than was asked for")
        return seconds


def first_token(bench: Bench) -> None:
    """What ends a start."""
    bench.run(bench.prompts(1, 16), [8])


def decode(batch: int) -> Callable[[Bench], Figures]:
    """One step's time: a longer call less a shorter one, over the extra tokens, so that prefill and the call's overhead cancel."""

    def measure(bench: Bench) -> Figures:
        prompt, short, long = bench.scale.decode
        bench.run(bench.prompts(batch, prompt), [4] * batch)

        def once() -> float:
            longer = bench.run(bench.prompts(batch, prompt), [long] * batch)
            return (longer - bench.run(bench.prompts(batch, prompt), [short] * batch)) / (long - short)

        steps = [1e3 * once() for _ in range(REPEATS)]
        return {f"decode_b{batch}": statistics.median(steps), "all": steps}

    return measure


def prefill(bench: Bench) -> Figures:
    """Prompt tokens a second, many long prompts at once."""
    count, length = bench.scale.prefill
    bench.run(bench.prompts(2, length), [1] * 2)
    return {"prefill": count * length / bench.run(bench.prompts(count, length), [1] * count)}


def ttft(bench: Bench) -> Figures:
    """Milliseconds of one prompt with one token of output, alone."""
    bench.run(bench.prompts(1, bench.scale.ttft), [1])
    times = [1e3 * bench.run(bench.prompts(1, bench.scale.ttft), [1]) for _ in range(5)]
    return {"ttft_1k": statistics.median(times), "all": times}


def chat(bench: Bench, sampling: dict[str, Any] = GREEDY) -> Figures:
    """Requests a second, all given at once, of lengths like chat traffic's."""
    count = bench.scale.chat
    num_in, num_out = shapes.chat_lengths(count)
    limit = bench.scale.max_model_len // 2
    num_in, num_out = [min(n, limit) for n in num_in], [min(n, limit) for n in num_out]
    inputs = [shapes.random_ids(bench.rng, n, bench.vocab) for n in num_in]
    seconds = bench.run(inputs, num_out, sampling)
    return {"chat": count / seconds, "out_tok_s": sum(num_out) / seconds}


def sampling_cost(bench: Bench) -> Figures:
    """The chat workload with all that a sampler can be asked for: by what share it takes longer than greedy, in percent."""
    return _costs(bench, ["all"])


def sampling_each(bench: Bench) -> Figures:
    """The same for each thing by itself."""
    return _costs(bench, list(SAMPLING))


def _costs(bench: Bench, names: list[str]) -> Figures:
    """Each kind runs once ahead, as greedy does: its steps are captured then. What those runs cost is told too."""
    chat(bench)
    greedy = chat(bench)["chat"]

    def cost(name: str) -> float:
        return 100 * (greedy / chat(bench, SAMPLING[name])["chat"] - 1)

    first = {name: cost(name) for name in names}
    each = {name: cost(name) for name in names}
    return {"sampling_cost": each["all"], "each": each, "first": first, "greedy_req_s": greedy}


def prefix_groups(bench: Bench) -> Figures:
    """Requests a second where groups of requests share a long system prompt."""
    groups, each, shared, own, output = bench.scale.groups
    heads = bench.prompts(groups, shared)
    order = bench.rng.permutation(groups * each) % groups
    inputs = [heads[g] + shapes.random_ids(bench.rng, own, bench.vocab) for g in order]
    return {"prefix_groups": len(inputs) / bench.run(inputs, [output] * len(inputs))}


def prefix_turns(bench: Bench) -> Figures:
    """Requests a second of conversations whose every turn begins with all that was said before."""
    count, new, output = bench.scale.turns
    said: Prompts = [[] for _ in range(count)]
    total = 0.0
    for _ in range(TURNS):
        said = [before + fresh for before, fresh in zip(said, bench.prompts(count, new), strict=True)]
        seconds, answers = bench.engine.generate(said, [output] * count, GREEDY)
        said = [before + answer for before, answer in zip(said, answers, strict=True)]
        total += seconds
    return {"prefix_turns": TURNS * count / total}


def itl_p99_mixed(bench: Bench) -> Figures:
    """99th percentile, in milliseconds, of the time between two tokens of running decoders while long prompts arrive."""
    gaps: list[float] = []
    waits: list[float] = []

    async def drive(open_one: Open) -> None:
        await asyncio.gather(*_decoders_and_prompts(bench, open_one, gaps, waits))

    bench.engine.stream(drive)
    gaps.sort()
    at = [1e3 * gaps[min(len(gaps) - 1, int(share * len(gaps)))] for share in (0.5, 0.9, 0.99, 1.0)]
    return {
        "itl_p99_mixed": at[2],
        "p50": at[0],
        "p90": at[1],
        "max": at[3],
        "long_ttft": 1e3 * statistics.median(waits),
    }


def _decoders_and_prompts(bench: Bench, open_one: Open, gaps: list[float], waits: list[float]) -> list[Any]:
    """A long prompt comes each time the first decoder has made some more tokens; counting begins with the first of them."""
    decoders, prompt, long_prompts, long_length = bench.scale.mixed
    gap = bench.scale.mixed_gap
    length = gap * (long_prompts + 1)
    inputs, longs = bench.prompts(decoders, prompt), bench.prompts(long_prompts, long_length)
    arrivals = [asyncio.Event() for _ in longs]

    async def decoder(index: int) -> None:
        seen, last = 0, 0.0
        async for count in open_one(f"decoder-{index}", inputs[index], length):
            now = time.perf_counter()
            if index == 0:
                for arrival in arrivals[: count // gap]:
                    arrival.set()
            if seen >= gap and count > seen:  # tokens that come together: one waited, the others did not
                gaps.extend([now - last, *[0.0] * (count - seen - 1)])
            seen, last = count, now

    async def long(index: int) -> None:
        await arrivals[index].wait()
        begin = time.perf_counter()
        async for _ in open_one(f"long-{index}", longs[index], 1):
            waits.append(time.perf_counter() - begin)

    return [*(decoder(i) for i in range(decoders)), *(long(i) for i in range(long_prompts))]


WORKLOADS: dict[str, Callable[[Bench], Figures]] = {
    "decode_b1": decode(1),
    "decode_b8": decode(8),
    "decode_b64": decode(64),
    "decode_b256": decode(256),
    "prefill": prefill,
    "ttft_1k": ttft,
    "chat": chat,
    "sampling_cost": sampling_cost,
    "sampling_each": sampling_each,
    "prefix_groups": prefix_groups,
    "prefix_turns": prefix_turns,
    "itl_p99_mixed": itl_p99_mixed,
}
