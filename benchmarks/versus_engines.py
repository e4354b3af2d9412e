"""One class an engine, all with the same four calls, so that the workloads are written once.

Token ids in, token ids out; random weights from a config.json; the arguments are those that suit each engine best on one large GPU.
An engine is imported when it is made: what that takes is part of its start.
"""

import importlib
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

GREEDY: dict[str, Any] = {"temperature": 0.0}
Prompts = list[list[int]]


class Engine(Protocol):
    """What is measured."""

    def generate(self, prompts: Prompts, lengths: list[int], sampling: dict[str, Any]) -> tuple[float, Prompts]:
        """Seconds of one call for all prompts, and the tokens that each was given: exactly as many as `lengths` says."""

    def stream(self, drive: "Drive") -> None:
        """Runs `drive` with a function that streams one request."""

    def close(self) -> None:
        """Frees the device."""


# (name, prompt, length) -> yields the number of tokens so far, each time there are more
Open = Callable[[str, list[int], int], AsyncIterator[int]]
Drive = Callable[[Open], Any]


class _VllmCalls:
    """The calls that quire and vLLM share: their `package` is imported, their arguments are the same."""

    package: str

    def __init__(self, folder: str, max_model_len: int, serving: bool, options: dict[str, Any]) -> None:
        found = importlib.import_module(self.package)
        self.params = found.SamplingParams
        self.llm = self.kind(found, serving)(
            model=folder, load_format="dummy", skip_tokenizer_init=True, seed=0, dtype="bfloat16",
            gpu_memory_utilization=0.9, max_model_len=max_model_len, disable_log_stats=True, **options,
        )  # fmt: skip

    def kind(self, package: Any, serving: bool) -> Any:
        """The class to make."""
        return package.LLM

    def generate(self, prompts: Prompts, lengths: list[int], sampling: dict[str, Any]) -> tuple[float, Prompts]:
        given = [{"prompt_token_ids": p} for p in prompts]
        params = [self.params(**each(sampling, i), max_tokens=n, **ANY_TOKEN) for i, n in enumerate(lengths)]
        begin = time.perf_counter()
        outputs = self.llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return seconds, [list(o.outputs[0].token_ids) for o in outputs]


class Quire(_VllmCalls):
    """The engine of this repository. `serving`: as a server runs it, which `stream` needs."""

    package = "quire"

    def kind(self, package: Any, serving: bool) -> Any:
        return package.AsyncLLM if serving else package.LLM

    def stream(self, drive: Drive) -> None:
        import asyncio

        async def open_one(name: str, prompt: list[int], length: int) -> AsyncIterator[int]:
            params = self.params(**GREEDY, max_tokens=length, **ANY_TOKEN)
            async for output in self.llm.generate({"prompt_token_ids": prompt}, params, name):
                yield len(output.outputs[0].token_ids)

        asyncio.run(drive(open_one))

    def close(self) -> None:
        getattr(self.llm, "llm_engine", self.llm).close()


class Vllm(_VllmCalls):
    """vLLM 0.26. Its prefix cache is on, as it comes."""

    package = "vllm"

    def __init__(self, folder: str, max_model_len: int, serving: bool, options: dict[str, Any]) -> None:
        os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
        super().__init__(folder, max_model_len, serving, options)

    def stream(self, drive: Drive) -> None:
        """Steps the engine on one thread, and hands each request's progress to whoever waits for it."""
        import asyncio

        engine, queues = self.llm.llm_engine, {}

        async def open_one(name: str, prompt: list[int], length: int) -> AsyncIterator[int]:
            queues[name] = asyncio.Queue()
            engine.add_request(
                name, {"prompt_token_ids": prompt}, self.params(**GREEDY, max_tokens=length, **ANY_TOKEN)
            )
            finished = False
            while not finished:
                count, finished = await queues[name].get()
                yield count

        async def step_until(done: "asyncio.Future[Any]") -> None:
            while not done.done():
                for output in engine.step() if engine.has_unfinished_requests() else ():
                    queues[output.request_id].put_nowait((len(output.outputs[0].token_ids), output.finished))
                await asyncio.sleep(0)

        async def run() -> None:
            driven = asyncio.ensure_future(drive(open_one))
            await step_until(driven)
            await driven

        asyncio.run(run())

    def close(self) -> None:
        self.llm = None


class Sglang:
    """SGLang 0.5.16. Its radix cache costs a little where nothing is shared, so it is on for `serving` alone."""

    def __init__(self, folder: str, max_model_len: int, serving: bool, options: dict[str, Any]) -> None:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", DO_NOT_TRACK="1")
        os.environ.setdefault("SGLANG_IS_FLASHINFER_AVAILABLE", "false")
        os.environ.setdefault("SGLANG_HOST_IP", "127.0.0.1")
        os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
        engine = importlib.import_module("sglang.srt.entrypoints.engine")
        self.engine = engine.Engine(
            model_path=folder, load_format="dummy", skip_tokenizer_init=True, random_seed=0, dtype="bfloat16",
            mem_fraction_static=0.85, context_length=max_model_len, disable_radix_cache=not serving, log_level="warning",
            **{"attention_backend": "fa3", "sampling_backend": "pytorch", "cuda_graph_max_bs_decode": 512, **options},
        )  # fmt: skip

    def generate(self, prompts: Prompts, lengths: list[int], sampling: dict[str, Any]) -> tuple[float, Prompts]:
        params = [{**each(sampling, i), "max_new_tokens": n, "ignore_eos": True} for i, n in enumerate(lengths)]
        begin = time.perf_counter()
        outputs = self.engine.generate(input_ids=prompts, sampling_params=params)
        seconds = time.perf_counter() - begin
        return seconds, [list(o["output_ids"]) for o in outputs]

    def stream(self, drive: Drive) -> None:
        async def open_one(name: str, prompt: list[int], length: int) -> AsyncIterator[int]:
            params = {**GREEDY, "max_new_tokens": length, "ignore_eos": True}
            async for chunk in await self.engine.async_generate(input_ids=prompt, sampling_params=params, stream=True):
                yield chunk["meta_info"]["completion_tokens"]

        self.engine.loop.run_until_complete(drive(open_one))

    def close(self) -> None:
        self.engine.shutdown()


ANY_TOKEN = {"ignore_eos": True, "detokenize": False}
ENGINES: dict[str, Callable[[str, int, bool, dict[str, Any]], Engine]] = {
    "quire": Quire, "vllm": Vllm, "sglang": Sglang
}  # fmt: skip


def each(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    """The sampling of request `index`: "seed": True gives each its own."""
    return {**sampling, "seed": index} if sampling.get("seed") else sampling


def versions() -> dict[str, str]:
    """Of the packages that count, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "triton", "transformers", "vllm", "sglang", "sglang-kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fresh_folder(path: str) -> str:
    """An empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path
