"""The official OpenAI client against `quire serve`; pass the server's address, or it is taken to be on this machine."""

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1", api_key="EMPTY")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "What is the capital of France?"}]
answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
print(answer.choices[0].message.content)
for chunk in client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
