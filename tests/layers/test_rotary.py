"""Rotary tables against transformers' own functions, and what is refused."""

from typing import Any

import pytest
import torch
from model_parity import rope
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.layers.rotary import RopeConfig

HEAD_DIM, MAX_POSITION, CHECKED = 32, 4096, 5000
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
KINDS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "default": ("default", 10000.0, {}),
    "linear": ("linear", 10000.0, {"factor": 4.0}),
    "llama3": ("llama3", 500000.0, LLAMA3),
    "yarn": ("yarn", 1e6, {"factor": 4.0, "original_max_position_embeddings": 1024}),
    "yarn with mscale": (
        "yarn", 10000.0,
        {"factor": 8.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 24, "beta_slow": 2},
    ),
    "yarn not truncated": (
        "yarn", 10000.0,
        {"factor": 2.0, "original_max_position_embeddings": 2048, "truncate": False, "attention_factor": 0.9},
    ),
}  # fmt: skip


def config(**values: Any) -> HfConfig:
    return HfConfig({"max_position_embeddings": MAX_POSITION, **values})


@pytest.mark.parametrize("name", KINDS)
def test_table_equals_transformers(name: str) -> None:
    kind, theta, scaling = KINDS[name]
    hf = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=MAX_POSITION,
        **rope(kind, theta, **scaling),
    )
    cos, sin = LlamaRotaryEmbedding(hf)(torch.zeros(1), torch.arange(CHECKED)[None])
    read = RopeConfig.from_hf(config(rope_parameters={"rope_type": kind, "rope_theta": theta, **scaling}))
    table = read.table(HEAD_DIM, CHECKED)
    half = HEAD_DIM // 2
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], atol=2e-6, rtol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_both_spellings_read_equal(name: str) -> None:
    kind, theta, scaling = KINDS[name]
    old = {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"rope_type": kind, **scaling}}
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}
    assert RopeConfig.from_hf(config(**old)) == RopeConfig.from_hf(config(**new))


def test_the_oldest_spelling_of_the_kind_is_read() -> None:
    rope = RopeConfig.from_hf(config(rope_scaling={"type": "linear", "factor": 2}))
    assert (rope.kind, rope.factor) == ("linear", 2.0)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "longrope"}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
        {"rope_scaling": "linear"},
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 0.0},
    ],
    ids=str,
)
def test_what_is_not_implemented_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        RopeConfig.from_hf(config(**values))
