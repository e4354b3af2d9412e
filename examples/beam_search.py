"""The most likely continuations of a text, found by beam search, best first."""

from quire import LLM, BeamSearchParams

prompts = ["The capital of Japan is", "日本的首都是"]
params = BeamSearchParams(beam_width=3, max_tokens=8)

with LLM() as llm:
    for prompt, output in zip(prompts, llm.beam_search(prompts, params)):
        print(prompt)
        for beam in output.sequences:
            print(f"{beam.cum_logprob:8.3f} {beam.text!r}")
