"""Steps that nobody waits for, on the GPU: the tokens of steps that wait, and draws as often as they should be."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import engines
import numpy as np
import pytest
from chi_square import p_value

from quire import LLM, RequestOutput, SamplingParams

COUNTRIES = ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Chile", "Nepal", "Cuba", "Ghana")
TEXTS = (
    "What is the capital of {}?", "{} 的首都是哪里？", "How much is {} + {}?", "Count from {} to {}.", "Tell me about {}.",
    "What is famous in {}, and why do {} people like it?", "What is {} - {}?", "中国的首都在哪里？还有 {} 的呢？",
)  # fmt: skip


FEW_BLOCKS = 8192  # so that several of these tests fit on a device
PENALTIES: tuple[dict[str, Any], ...] = ({"repetition_penalty": 1.1}, {"presence_penalty": 0.3})
MANNERS: tuple[dict[str, Any], ...] = ({}, {}, {}, {"logprobs": 5})
NUM_ATTENDED = 50  # the last requests: while one of them runs, each step waits for the host


def mixed_requests(count: int, manners: tuple[dict[str, Any], ...]) -> tuple[list[str], list[SamplingParams]]:
    """Greedy requests of many lengths, in these manners, half of them with ends of their own; the last need the host each step."""
    draw = random.Random(11)
    texts, params = [], []
    for index in range(count):
        words = [draw.choice((*COUNTRIES, str(draw.randrange(100)))) for _ in range(2)]
        texts.append(" ".join(draw.choice(TEXTS).format(*words) for _ in range(draw.choice((1, 1, 2, 5, 12, 40)))))
        ends, more = draw.random() < 0.5, draw.choice(manners)
        more = {"min_tokens": 3} if index >= count - NUM_ATTENDED else more
        params.append(SamplingParams(temperature=0, max_tokens=draw.randrange(3, 60), ignore_eos=not ends, **more))
    return texts, params


@contextmanager
def bundled(dtype: str, overlapped: bool) -> Iterator[tuple[LLM, list[Any]]]:
    """The bundled model, in overlapped graphs or in eager steps that are waited for one by one; and the batches nobody waited for."""
    options: dict[str, Any] = {"max_num_seqs": 200, "num_gpu_blocks_override": FEW_BLOCKS}
    with LLM("builtin:tiny", dtype=dtype, enforce_eager=not overlapped, **options) as llm:
        engine, started = llm.llm_engine.engine, []
        start = engine.runner.start
        engine.runner.start = lambda batch: (started.append(batch), start(batch))[1]
        if not overlapped:
            engine.scheduler.stop_lengthening()
        yield llm, started


def gaps(llm: LLM, pairs: list[tuple[RequestOutput, RequestOutput]]) -> list[float]:
    """By how many nats the two tokens differ at which two continuations of a prompt part, after what they have in common."""
    prompts, parted = [], []
    for a, b in pairs:
        ours, theirs = a.outputs[0].token_ids, b.outputs[0].token_ids
        same = next(i for i, (x, y) in enumerate(zip_longest(ours, theirs)) if x != y)
        if same == min(len(ours), len(theirs)):
            return [float("inf")]  # one has an end where the other goes on, with the same tokens up to there
        prompts.append({"prompt_token_ids": [*a.prompt_token_ids, *ours[:same]]})
        parted.append((ours[same], theirs[same]))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
    found = [o.outputs[0].logprobs[0] for o in llm.generate(prompts, params, use_tqdm=False)]
    return [
        abs(at[x].logprob - at[y].logprob) if x in at and y in at else float("inf")
        for at, (x, y) in zip(found, parted, strict=True)
    ]


# Matrix products of other row counts round differently: two tokens may part where they are as good as equal, in fp32 as good as never.
@pytest.mark.parametrize(
    ("dtype", "manners", "most_nats", "most"),
    [("float32", MANNERS + PENALTIES, 1e-3, 3), ("bfloat16", MANNERS, 0.15, 300)],
    ids=["float32", "bfloat16"],
)
def test_overlapped_graphs_give_the_tokens_of_steps_that_wait(dtype, manners, most_nats, most, note):
    texts, params = mixed_requests(1000, manners)
    with bundled(dtype, overlapped=True) as (llm, started):
        ahead = llm.generate(texts, params, use_tqdm=False)
        assert len(started) > 50
    with bundled(dtype, overlapped=False) as (llm, started):
        waited = llm.generate(texts, params, use_tqdm=False)
        pairs = list(zip(ahead, waited, params, strict=True))
        different = [(a, b, p) for a, b, p in pairs if a.outputs[0].token_ids != b.outputs[0].token_ids]
        plain = [(a, b) for a, b, p in different if p.repetition_penalty == 1.0 and p.presence_penalty == 0.0]
        widest = max(gaps(llm, plain), default=0.0) if plain else 0.0
        assert not started
    note(
        f"of 1,000 greedy continuations, {len(different)} differ between overlapped graphs and eager steps that wait ({dtype}); "
        f"the two tokens at which they part are at most {widest:.4f} nats apart"
    )
    assert len(ahead) == len(waited) == 1000 and len(different) <= most and widest <= most_nats


@pytest.mark.parametrize("params", [{}, {"top_k": 40}, {"logprobs": 2}], ids=str)
def test_frequencies_at_temperature_1(params, tmp_path_factory):
    folder = engines.shapes.write_config("test", tmp_path_factory.mktemp("shapes"))
    prompt = {"prompt_token_ids": [3, 1, 4, 1, 5, 9, 2, 6]}
    # In fp32, so that the batch that is drawn from has the distribution of the prompt alone, down to which 40 tokens are likeliest.
    with engines.engine(
        folder, dtype="float32", max_num_seqs=256, max_model_len=128, num_gpu_blocks_override=FEW_BLOCKS
    ) as llm:
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
