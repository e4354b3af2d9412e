"""Steps that nobody waits for, on the GPU: the tokens of steps that wait, and draws as often as they should be."""

import random
from typing import Any

import engines
import numpy as np
import pytest
from chi_square import p_value

from quire import LLM, SamplingParams

COUNTRIES = ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Chile", "Nepal", "Cuba", "Ghana")
TEXTS = (
    "What is the capital of {}?", "{} 的首都是哪里？", "How much is {} + {}?", "Count from {} to {}.", "Tell me about {}.",
    "What is famous in {}, and why do {} people like it?", "What is {} - {}?", "中国的首都在哪里？还有 {} 的呢？",
)  # fmt: skip


def mixed_requests(count: int) -> tuple[list[str], list[SamplingParams]]:
    """Greedy requests of many lengths, with and without penalties, log-probabilities and ends of their own."""
    draw = random.Random(11)
    texts, params = [], []
    for _ in range(count):
        words = [draw.choice((*COUNTRIES, str(draw.randrange(100)))) for _ in range(2)]
        texts.append(" ".join(draw.choice(TEXTS).format(*words) for _ in range(draw.choice((1, 1, 2, 5, 12, 40)))))
        more: dict[str, Any] = draw.choice(
            (
                {},
                {},
                {},
                {"repetition_penalty": 1.1},
                {"presence_penalty": 0.3},
                {"logprobs": 5},
                {"min_tokens": 3},
            )
        )
        ends = draw.random() < 0.5
        params.append(SamplingParams(temperature=0, max_tokens=draw.randrange(1, 60), ignore_eos=not ends, **more))
    return texts, params


def answers(overlapped: bool) -> tuple[list[tuple[int, ...]], int]:
    """Tokens of all sequences of the 1,000 requests; how many batches nobody waited for."""
    texts, params = mixed_requests(1000)
    with LLM("builtin:tiny", dtype="float32", max_num_seqs=200, enforce_eager=not overlapped) as llm:
        engine = llm.llm_engine.engine
        started = []
        start = engine.runner.start
        engine.runner.start = lambda batch: (started.append(batch), start(batch))[1]
        if not overlapped:
            engine.scheduler.stop_lengthening()  # steps one at a time, each waited for
        outputs = llm.generate(texts, params, use_tqdm=False)
    return [tuple(choice.token_ids) for output in outputs for choice in output.outputs], len(started)


def test_overlapped_graphs_give_the_tokens_of_steps_that_wait(note):
    ahead, num_ahead = answers(overlapped=True)
    waited, num_waited = answers(overlapped=False)
    assert num_ahead > 50 and num_waited == 0
    assert len(ahead) == len(waited) == 1000
    different = [i for i, (a, b) in enumerate(zip(ahead, waited, strict=True)) if a != b]
    note(
        f"of {len(ahead)} greedy continuations, {len(different)} differ between overlapped graphs and steps that wait (fp32)"
    )
    # Matrix products of other row counts round differently, in fp32 by 1e-6: hardly a tie is so close. A wrong token parts many.
    assert len(different) <= 3


@pytest.mark.parametrize("params", [{}, {"top_k": 40}, {"logprobs": 2}], ids=str)
def test_frequencies_at_temperature_1(params, tmp_path_factory):
    folder = engines.shapes.write_config("test", tmp_path_factory.mktemp("shapes"))
    prompt = {"prompt_token_ids": [3, 1, 4, 1, 5, 9, 2, 6]}
    # In fp32, so that the batch that is drawn from has the distribution of the prompt alone, down to which 40 tokens are likeliest.
    with engines.engine(folder, dtype="float32", max_num_seqs=256, max_model_len=128) as llm:
        every = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False)
        at = llm.generate([prompt], every, use_tqdm=False)[0].outputs[0].logprobs[0]
        many = [
            SamplingParams(temperature=1.0, seed=seed, max_tokens=1, ignore_eos=True, detokenize=False, **params)
            for seed in range(10_000)
        ]
        tokens = [o.outputs[0].token_ids[0] for o in llm.generate([prompt] * len(many), many, use_tqdm=False)]
    probabilities = np.array([np.exp(at[token].logprob) for token in range(512)])
    if "top_k" in params:
        probabilities = np.where(probabilities >= np.sort(probabilities)[-40], probabilities, 0.0)
        assert set(tokens) <= set(np.flatnonzero(probabilities))
    assert p_value(tokens, probabilities) > 1e-3
    assert p_value(tokens, probabilities**2) < 1e-3, "draws of another temperature must be told apart"
