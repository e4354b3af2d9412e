"""Mistral against transformers, in fp32."""

from pathlib import Path

import pytest
from model_parity import SIZES, check
from transformers import MistralConfig

VARIANTS = {
    "sliding_window": {"sliding_window": 20},
    "window_of_one_block": {"sliding_window": 16},
    "no_window": {"sliding_window": None},
    "head_dim_of_its_own": {"sliding_window": None, "head_dim": 24},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_and_tokens_equal_transformers(
    variant: str, tmp_path: Path, backends: tuple[str, ...]
) -> None:
    check(tmp_path, MistralConfig(**{**SIZES, **VARIANTS[variant]}), backends)
