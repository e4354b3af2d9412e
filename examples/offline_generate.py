"""Continue a few prompts with the bundled model; pass a folder or hub name to use another."""

import sys

from quire import LLM, SamplingParams

llm = LLM(model=sys.argv[1]) if len(sys.argv) > 1 else LLM()
params = SamplingParams(temperature=0.0, max_tokens=32)
for output in llm.generate(["The capital of France is", "法国的首都是"], params):
    print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
