"""A conversation of two turns: the second question needs the first."""

from quire import LLM, SamplingParams

llm = LLM()
params = SamplingParams(temperature=0.0, max_tokens=64)
messages = []
for question in ("浙江的省会在哪里？", "这有什么好吃的？"):
    messages.append({"role": "user", "content": question})
    answer = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text
    messages.append({"role": "assistant", "content": answer})
    print(f"{question} {answer}")
