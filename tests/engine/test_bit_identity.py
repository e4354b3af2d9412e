"""What a request gets does not depend on what runs beside it: tokens and log-probabilities equal those of the solo run, bit for bit,
over batch sizes, orders, chunk sizes, cold and warm prefix cache, and preemption.

One pair is a prompt under a condition. 500 pairs here; QUIRE_SOAK=1 (make soak) makes it 10,000.
"""

import os
import random

import pytest
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire import LLM, SamplingParams

NUM_PAIRS = 10_000 if os.environ.get("QUIRE_SOAK") else 500
MAX_LEN = 256
CHUNKS = (16, 64, 512, 4096)
BATCH_SIZES = (64, 1, 24, 2, 3, 32, 5, 8, 40, 13, 16)
TIGHT = (24, 40)  # batches of these sizes get few blocks, and sequences lose theirs at any moment
CACHES = ("off", "cold", "warm")


def make_requests(rng):
    """64 prompts of 1 to 180 tokens, many with common beginnings; greedy and seeded, with the top log-probabilities."""
    stems = [[rng.randrange(VOCAB_SIZE) for _ in range(120)] for _ in range(3)]
    requests = []
    for i in range(64):
        prompt = rng.choice(stems)[: rng.randrange(0, 121)] + [
            rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 60))
        ]
        settings = {"max_tokens": rng.randrange(8, 40), "logprobs": 3, "ignore_eos": True, "seed": i}
        kind = i % 4
        settings |= [
            {"temperature": 0.0},
            {"temperature": 0.0, "prompt_logprobs": 2},
            {"temperature": 0.9, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "n": 2},
        ][kind]
        requests.append((prompt, SamplingParams(**settings)))
    return requests


def bits(output):
    """Everything about an output that must not change; floats compare as they are, so by their bits."""
    return [(c.token_ids, c.logprobs, c.cumulative_logprob) for c in output.outputs], output.prompt_logprobs


def preempt_now_and_then(llm, rng):
    """Takes the blocks of some request after one step in five, beyond what the scheduler does by itself."""
    engine, ids = llm.llm_engine.engine, llm.llm_engine._live
    step = engine.step

    def disturbed_step(*meanwhile):
        outputs = step(*meanwhile)
        if ids and rng.random() < 0.2:
            engine.scheduler.preempt(rng.choice(list(ids)))
        return outputs

    engine.step = disturbed_step


def run(folder, requests, *, warm, disturb_with=None, **kwargs):
    with LLM(str(folder), max_model_len=MAX_LEN, **kwargs) as llm:
        if disturb_with is not None:
            preempt_now_and_then(llm, disturb_with)
        prompts, params = [prompt for prompt, _ in requests], [p for _, p in requests]
        for _ in range(2 if warm else 1):
            outputs = llm.generate(prompts, params, use_tqdm=False)
        return [bits(output) for output in outputs], llm.llm_engine.stats()


@pytest.mark.parametrize(("dtype", "backends"), [("float32", None), ("bfloat16", None), ("float32", "torch")])
def test_nothing_beside_a_request_changes_a_bit_of_it(tmp_path, dtype, backends):
    rng = random.Random(f"{dtype} {backends}")
    folder = tiny_qwen2(tmp_path / "model", max_len=MAX_LEN)
    requests = make_requests(rng)
    common = {"dtype": dtype, "backends": backends}
    with LLM(
        str(folder), max_model_len=MAX_LEN, num_gpu_blocks_override=40, enable_prefix_caching=False, **common
    ) as llm:
        solo = [bits(llm.generate([prompt], params, use_tqdm=False)[0]) for prompt, params in requests]
    num_pairs = num_preemptions = num_hits = number = 0
    while num_pairs < NUM_PAIRS / 3:
        size = BATCH_SIZES[number % len(BATCH_SIZES)]
        chunk, cache, tight = CHUNKS[number % 4], CACHES[number % 3], size in TIGHT
        chosen = rng.sample(range(64), size)
        got, stats = run(
            folder,
            [requests[i] for i in chosen],
            warm=cache == "warm",
            disturb_with=rng if tight else None,
            enable_prefix_caching=cache != "off",
            max_num_batched_tokens=chunk,
            num_gpu_blocks_override=30 if tight else 1200,
            max_num_seqs=min(size, chunk),
            **common,
        )
        where = f"dtype {dtype}, batch {size}, chunk {chunk}, cache {cache}, tight {tight}, prompts {chosen}"
        for i, mine in zip(chosen, got, strict=True):
            assert mine == solo[i], f"prompt {i} differs: {where}"
        num_pairs += size
        number += 1
        num_preemptions += stats.num_preemptions
        num_hits += stats.prefix_cache_hits
    assert num_preemptions > 20 and num_hits > 0
