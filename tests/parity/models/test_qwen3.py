"""Qwen3 against transformers, in fp32."""

from pathlib import Path

import pytest
from model_parity import SIZES, check
from transformers import Qwen3Config

VARIANTS = {
    "head_dim_of_its_own": {"head_dim": 32},
    "tied": {"head_dim": 16, "tie_word_embeddings": True},
    "attention_bias": {"head_dim": 24, "attention_bias": True},
    "sliding_window": {"head_dim": 32, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_and_tokens_equal_transformers(
    variant: str, tmp_path: Path, backends: tuple[str, ...]
) -> None:
    check(tmp_path, Qwen3Config(**{**SIZES, **VARIANTS[variant]}), backends)
