"""Llama against transformers, in fp32."""

from pathlib import Path

import pytest
from model_parity import SIZES, check, rope
from transformers import LlamaConfig

LLAMA3_ROPE = rope(
    "llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
VARIANTS = {
    "llama2": {"num_key_value_heads": 4},
    "grouped_heads": {},
    "llama3_rope": {**LLAMA3_ROPE, "tie_word_embeddings": True},
    "linear_rope": rope("linear", 10000.0, factor=4.0),
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim_of_its_own": {"head_dim": 24},
    "yi": {"rms_norm_eps": 1e-5, **rope("default", 5e6)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_and_tokens_equal_transformers(
    variant: str, tmp_path: Path, backends: tuple[str, ...]
) -> None:
    check(tmp_path, LlamaConfig(**{**SIZES, **VARIANTS[variant]}), backends)
