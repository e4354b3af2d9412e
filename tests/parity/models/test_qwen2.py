"""Qwen2 against transformers, in fp32."""

from pathlib import Path

import pytest
from model_parity import SIZES, check, rope
from transformers import Qwen2Config

VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "all_heads_have_keys": {"num_key_value_heads": 4},
    "one_key_head": {"num_key_value_heads": 1},
    "sliding_window_from_layer_1": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "linear_rope": rope("linear", 10000.0, factor=2.0),
    "yarn_rope": rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_and_tokens_equal_transformers(
    variant: str, tmp_path: Path, backends: tuple[str, ...]
) -> None:
    check(tmp_path, Qwen2Config(**{**SIZES, **VARIANTS[variant]}), backends)
