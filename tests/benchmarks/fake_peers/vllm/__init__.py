"""What the benchmark calls of vLLM, with tokens that mean nothing and a clock of a thousandth of a second a step."""

import time
from types import SimpleNamespace


class SamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos, detokenize):
        assert ignore_eos and not detokenize and temperature == 0.0
        self.max_tokens = max_tokens


class Engine:
    def __init__(self):
        self.live = {}

    def add_request(self, request_id, prompt, params):
        self.live[request_id] = [0, params.max_tokens]

    def has_unfinished_requests(self):
        return bool(self.live)

    def step(self):
        time.sleep(0.001)
        found = []
        for name, counts in list(self.live.items()):
            counts[0] += 1
            finished = counts[0] == counts[1]
            tokens = SimpleNamespace(token_ids=[1] * counts[0])
            found.append(SimpleNamespace(request_id=name, outputs=[tokens], finished=finished))
            if finished:
                del self.live[name]
        return found


class LLM:
    def __init__(self, **options):
        assert options["load_format"] == "dummy" and options["skip_tokenizer_init"]
        self.llm_engine = Engine()

    def generate(self, prompts, params, use_tqdm):
        time.sleep(0.001 * max(p.max_tokens for p in params))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1] * p.max_tokens)]) for p in params]
