"""Print an answer as it is made: generate and chat take stream=True and give a plain iterator."""

from quire import LLM, RequestOutputKind, SamplingParams

llm = LLM()
messages = [{"role": "user", "content": "Count from 1 to 10."}]
params = SamplingParams(temperature=0.0, max_tokens=64, output_kind=RequestOutputKind.DELTA)
for output in llm.chat(messages, params, stream=True):
    print(output.outputs[0].text, end="", flush=True)
print()
