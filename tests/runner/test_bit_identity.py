"""Tokens and log-probabilities of a sequence are the same bits alone and in company, whatever the batch, the order, the chunks,
the prefix cache and preemption do. QUIRE_IDENTITY_PAIRS sets how many sequences are compared with their solitary run.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from step_driver import BLOCK_SIZE, Driver, Line, load_runner
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire.core.params import SamplingParams
from quire.ops.registry import implementations
from quire.runner.model_runner import ModelRunner

PAIRS = int(os.environ.get("QUIRE_IDENTITY_PAIRS", "500"))
NUM_PROMPTS = 24
NUM_TOKENS = 6
CHUNKS = (16, 64, 512, 10_000)
MODEL = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 96, "intermediate_size": 200}
KINDS = [("torch", "float32"), ("torch", "bfloat16"), ("cpu", "float32"), ("cpu", "bfloat16")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    backend, dtype = request.param
    if backend == "cpu" and implementations("cpu")["linear"].why_not():
        pytest.skip("the cpu backend cannot run here")
    folder: Path = tiny_qwen2(tmp_path_factory.mktemp("model"), max_len=1024, **MODEL)
    runner = load_runner(
        folder, backends=(backend, "torch"), dtype=dtype, max_model_len=1024, max_num_batched_tokens=16_384,
        num_gpu_blocks_override=4000,
    )  # fmt: skip
    yield runner
    runner.close()


def make_cases(seed: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 600 tokens, some with common beginnings; greedy and sampled; every log-probability asked for."""
    draw = random.Random(seed)
    stem = [draw.randrange(VOCAB_SIZE) for _ in range(600)]
    cases = []
    for i in range(NUM_PROMPTS):
        length = draw.choice((1, 2, 15, 16, 17, 60, 129, 300, 600)) if i else 600
        shared = draw.randrange(length + 1) if i % 2 else 0
        prompt = stem[:shared] + [draw.randrange(VOCAB_SIZE) for _ in range(length - shared)]
        sampled = {"temperature": 1.0, "top_p": 0.9, "seed": i} if i % 3 == 0 else {"temperature": 0.0}
        cases.append((prompt, SamplingParams(**sampled, logprobs=-1, max_tokens=NUM_TOKENS)))
    return cases


def solitary(runner: ModelRunner, cases: list[tuple[list[int], SamplingParams]]) -> list[Line]:
    driver = Driver(runner, seed=1)
    lines = [driver.line(*case) for case in cases]
    for line in lines:
        driver.run(line, NUM_TOKENS)
        driver.forget(line)
    driver.step([])
    return lines


def in_company(runner: ModelRunner, cases: list[tuple[list[int], SamplingParams]], seed: int) -> list[tuple[int, Line]]:
    """Runs a random number of lines together: random order, chunks, prefix sharing, preemption. (case, line) of each."""
    draw = random.Random(seed)
    driver = Driver(runner, seed=seed + 2)
    batch_size, chunk = draw.choice((1, 2, 3, 5, 8, 13, 32, 64)), draw.choice(CHUNKS)
    warm = _finished_line(driver, cases[0]) if draw.random() < 0.5 else None
    lines = [
        (i, driver.line(*cases[i]))
        for i in (draw.randrange(len(cases)) for _ in range(batch_size - (warm is not None)))
    ]
    if warm is not None:
        for _, line in lines:
            driver.share_prefix(line, warm)
    while unfinished := [line for _, line in lines if len(line.generated) < NUM_TOKENS]:
        if draw.random() < 0.1 and warm is None:
            driver.preempt(draw.choice(unfinished))
        plan = draw.sample(unfinished, draw.randint(1, len(unfinished)))
        driver.step([(line, min(chunk, len(line.tokens) - line.computed)) for line in plan])
    for line in [line for _, line in lines] + ([warm] if warm else []):
        driver.removed.append(line.seq_id)
    driver.step([])
    return lines


def _finished_line(driver: Driver, case: tuple[list[int], SamplingParams]) -> Line:
    line = driver.line(*case)
    driver.run(line, NUM_TOKENS, chunk=BLOCK_SIZE * 3)
    return line


def test_company_changes_no_bit(runner: ModelRunner) -> None:
    cases = make_cases(seed=7)
    alone = solitary(runner, cases)
    pairs, seed = 0, 0
    while pairs < PAIRS // len(KINDS):
        seed += 1
        for case, line in in_company(runner, cases, seed):
            assert line.generated == alone[case].generated, f"scenario {seed}, case {case}"
            assert line.logprobs == alone[case].logprobs, f"scenario {seed}, case {case}"
            pairs += 1
