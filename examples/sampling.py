"""Several answers to one prompt, with the log-probability of each; the same seed gives the same answers."""

from quire import LLM, SamplingParams

with LLM() as llm:
    params = SamplingParams(n=3, temperature=0.8, top_p=0.95, seed=42, logprobs=1, max_tokens=24)
    for _ in range(2):
        result = llm.chat([{"role": "user", "content": "Hello!"}], params, use_tqdm=False)[0]
        for choice in result.outputs:
            print(f"{choice.index}: {choice.cumulative_logprob:8.3f} {choice.text!r}")
