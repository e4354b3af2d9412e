"""Engines on dummy checkpoints, for the tests of this folder."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import shapes  # noqa: E402

from quire import LLM, SamplingParams  # noqa: E402


def used_bytes() -> int:
    """Memory of the GPU that is taken, by anyone."""
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextmanager
def engine(folder: str, **options: Any) -> Iterator[LLM]:
    """An LLM on random weights without a tokenizer; closed at the end."""
    defaults = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16", "max_model_len": 4096}
    llm = LLM(model=folder, **{**defaults, **options})
    try:
        yield llm
    finally:
        llm.close()
        gc.collect()


def prompts(lengths: list[int], seed: int = 0, vocab: int = 150_000) -> list[dict[str, list[int]]]:
    """Random prompts of these lengths."""
    rng = np.random.default_rng(seed)
    return [{"prompt_token_ids": shapes.random_ids(rng, n, vocab)} for n in lengths]


def greedy(llm: LLM, inputs: list[dict[str, list[int]]], lengths: list[int], **more: Any) -> list[list[int]]:
    """Greedy continuations of exactly these lengths."""
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False, **more) for n in lengths]
    return [list(o.outputs[0].token_ids) for o in llm.generate(inputs, params, use_tqdm=False)]
