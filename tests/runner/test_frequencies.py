"""Tokens drawn at temperature 1 come as often as the model's distribution says, by the host's way and by the device's."""

from pathlib import Path

import numpy as np
import pytest
from chi_square import p_value
from recording_platform import RecordingPlatform
from test_decode_loop import engine_for
from tiny_checkpoints import VOCAB_SIZE, tiny_qwen2

from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.platform.cpu import CpuPlatform

PROMPT = [3, 1, 4, 1, 5]
NUM_DRAWS = 3000


def first_tokens(folder: Path, platform: CpuPlatform, **params: float) -> tuple[list[int], np.ndarray]:
    """First tokens of many requests with the same prompt and different seeds; the distribution that the model has there."""
    engine = engine_for(folder, platform, max_num_seqs=64, max_num_batched_tokens=512, num_gpu_blocks_override=2000)
    engine.add(Request("all", PROMPT, SamplingParams(temperature=0.0, max_tokens=1, logprobs=-1)))
    (output,) = engine.step()
    (entry,) = output.logprobs
    logprobs = np.zeros(VOCAB_SIZE)
    logprobs[entry.token_ids] = entry.logprobs
    for seed in range(NUM_DRAWS):
        sampling = SamplingParams(**{"temperature": 1.0, "max_tokens": 1, "seed": seed, "ignore_eos": True, **params})
        engine.add(Request(f"r{seed}", PROMPT, sampling))
    tokens = []
    while engine.has_work():
        tokens += [output.token_ids[0] for output in engine.step()]
    engine.close()
    assert len(tokens) == NUM_DRAWS
    return tokens, np.exp(logprobs)


@pytest.mark.parametrize("platform", [CpuPlatform, RecordingPlatform])
def test_frequencies_are_those_of_the_distribution(tmp_path: Path, platform: type[CpuPlatform]) -> None:
    tokens, probabilities = first_tokens(tiny_qwen2(tmp_path), platform())
    assert p_value(tokens, probabilities) > 1e-3
    assert p_value(tokens, probabilities**1.2) < 1e-3, "draws of another temperature must be told apart"


@pytest.mark.parametrize("platform", [CpuPlatform, RecordingPlatform])
def test_of_the_filtered_distribution_too(tmp_path: Path, platform: type[CpuPlatform]) -> None:
    tokens, probabilities = first_tokens(tiny_qwen2(tmp_path), platform(), top_k=20)
    kept = np.where(probabilities >= np.sort(probabilities)[-20], probabilities, 0.0)
    assert set(tokens) <= set(np.flatnonzero(kept))
    assert p_value(tokens, kept) > 1e-3


def test_the_test_itself() -> None:
    generator = np.random.default_rng(0)
    even = np.full(50, 1 / 50)
    values = [p_value(generator.integers(0, 50, 2000), even) for _ in range(300)]
    assert 0.4 < np.mean(values) < 0.6 and np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert p_value(generator.integers(0, 45, 2000), even) < 1e-6
