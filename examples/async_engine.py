"""Two requests at once in one asyncio program."""

import asyncio

from quire import AsyncLLM, SamplingParams
from quire.config import EngineArgs


async def ask(engine: AsyncLLM, prompt: str) -> None:
    text = ""
    async for output in engine.generate(prompt, SamplingParams(temperature=0.0, max_tokens=16), request_id=prompt):
        text = output.outputs[0].text
    print(f"{prompt!r} -> {text!r}")


async def main() -> None:
    engine = AsyncLLM.from_engine_args(EngineArgs())
    await asyncio.gather(ask(engine, "The capital of Italy is"), ask(engine, "意大利的首都是"))
    engine.close()


asyncio.run(main())
