"""OPT against transformers, in fp32."""

from pathlib import Path

import pytest
from model_parity import VOCAB_SIZE, check
from transformers import OPTConfig

SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "init_std": 0.15, "word_embed_proj_dim": 64, "dropout": 0.0,
}  # fmt: skip
VARIANTS = {
    "norm_before": {},
    "norm_after_with_projections": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "norm_after": {"do_layer_norm_before": False},
    "no_final_norm": {"_remove_final_layer_norm": True},
    "no_biases": {"enable_bias": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_and_tokens_equal_transformers(
    variant: str, tmp_path: Path, backends: tuple[str, ...]
) -> None:
    check(tmp_path, OPTConfig(**{**SIZES, **VARIANTS[variant]}), backends)
