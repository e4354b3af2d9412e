"""Two requests at once in one asyncio program: the engine computes them together."""

import asyncio

from quire import AsyncLLM, SamplingParams


async def ask(engine: AsyncLLM, prompt: str) -> None:
    text = ""
    async for output in engine.generate(prompt, SamplingParams(temperature=0.0, max_tokens=16)):
        text = output.outputs[0].text  # all of it so far
    print(f"{prompt!r} -> {text!r}")


async def main() -> None:
    with AsyncLLM() as engine:
        await asyncio.gather(ask(engine, "The capital of Italy is"), ask(engine, "意大利的首都是"))


asyncio.run(main())
