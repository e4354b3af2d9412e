"""Each model's Config: the key spellings of transformers 4 and 5 read equal; what the file does not implement is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_parity import SIZES, rope, spellings
from transformers import LlamaConfig, MistralConfig, OPTConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.models import llama, mistral, opt, qwen2, qwen3

YARN = rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = rope("llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
WINDOW = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
CASES: list[tuple[Any, PretrainedConfig]] = [
    (qwen2, Qwen2Config(**SIZES)),
    (qwen2, Qwen2Config(**SIZES, **WINDOW, **YARN)),
    (qwen3, Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
    (llama, LlamaConfig(**SIZES, **LLAMA3)),
    (mistral, MistralConfig(**SIZES, sliding_window=24)),
    (opt, OPTConfig(vocab_size=199, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4)),
]


@pytest.mark.parametrize(("module", "hf"), CASES, ids=lambda value: type(value).__name__)
def test_both_spellings_read_equal(module: Any, hf: PretrainedConfig, tmp_path: Path) -> None:
    hf.torch_dtype = hf.dtype = "bfloat16"
    hf.save_pretrained(tmp_path)
    old, new = (HfConfig(values) for values in spellings(tmp_path))
    assert "rope_parameters" not in old.values and "rope_theta" not in new.values
    assert module.Config.from_hf(new) == module.Config.from_hf(old)
    assert new.str("dtype") == new.str("torch_dtype") == old.str("dtype") == old.str("torch_dtype") == "bfloat16"


def llama_values(**changes: Any) -> HfConfig:
    return HfConfig({**json.loads(LlamaConfig(**SIZES).to_json_string()), **changes})


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (llama, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (llama, {"hidden_size": "64"}, "hidden_size is '64', expected int"),
        (llama, {"hidden_size": None}, "hidden_size is missing"),
        (llama, {"num_key_value_heads": 3}, "4 heads cannot share 3"),
        (llama, {"num_hidden_layers": 0}, "num_layers is 0"),
        (llama, {"vocab_size": 2**40}, "vocab_size"),
        (llama, {"hidden_size": 66, "head_dim": None}, "not a multiple of 4 heads"),
        (qwen2, {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]}, "each of the 3"),
        (qwen2, {"layer_types": ["sliding_attention"] * 3}, "sliding_window 0"),
        (qwen2, {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        (opt, {"ffn_dim": 96, "activation_function": "gelu"}, "activation_function is 'gelu'"),
        (opt, {"ffn_dim": 96, "layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (opt, {"ffn_dim": 96, "hidden_size": 65}, "not a multiple"),
    ],
    ids=str,
)
def test_what_is_not_implemented_is_refused(module: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        module.Config.from_hf(llama_values(**changes))


def test_windows_start_at_max_window_layers() -> None:
    config = qwen2.Config.from_hf(llama_values(use_sliding_window=True, sliding_window=8, max_window_layers=2))
    assert config.windows == (0, 0, 8)


def test_a_window_that_is_not_used_is_no_window() -> None:
    config = qwen2.Config.from_hf(llama_values(use_sliding_window=False, sliding_window=8, max_window_layers=0))
    assert config.windows == (0, 0, 0)


def test_mistral_without_the_key_has_the_window_of_its_first_release() -> None:
    assert mistral.Config.from_hf(llama_values()).window == 4096
    assert mistral.Config.from_hf(llama_values(sliding_window=None)).window == 0
    assert mistral.Config.from_hf(llama_values(sliding_window=7)).window == 7
