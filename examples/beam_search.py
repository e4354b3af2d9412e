"""The most likely continuations, found by beam search."""

from quire import LLM, BeamSearchParams

llm = LLM()
for output in llm.beam_search(["The capital of Japan is"], BeamSearchParams(beam_width=3, max_tokens=8)):
    for beam in output.sequences:
        print(f"{beam.cum_logprob:8.3f} {beam.text!r}")
