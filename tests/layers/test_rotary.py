"""Rotary tables against transformers' own functions, and what is refused."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.layers.rotary import RopeConfig

HEAD_DIM, MAX_POSITION, CHECKED = 32, 4096, 5000
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 10000.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "llama3": {"rope_theta": 500000.0, **LLAMA3},
    "yarn": {"rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn with mscale": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 512,
        "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 24, "beta_slow": 2,
    },
    "yarn not truncated": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 512,
        "truncate": False, "attention_factor": 0.9,
    },
}  # fmt: skip


def config(**values: Any) -> HfConfig:
    return HfConfig({"max_position_embeddings": MAX_POSITION, **values})


@pytest.mark.parametrize("kind", KINDS)
def test_table_equals_transformers(kind: str) -> None:
    parameters = {"rope_type": kind, **KINDS[kind]}
    hf = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=MAX_POSITION,
        rope_parameters=dict(parameters),
    )
    positions = torch.arange(CHECKED)
    cos, sin = LlamaRotaryEmbedding(hf)(torch.zeros(1), positions[None])
    table = RopeConfig.from_hf(config(rope_parameters=parameters)).table(HEAD_DIM, CHECKED)
    half = HEAD_DIM // 2
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], atol=2e-6, rtol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings_read_equal(kind: str) -> None:
    scaling = {"rope_type": kind, **KINDS[kind]}
    theta = scaling.pop("rope_theta")
    old = {"rope_theta": theta, "rope_scaling": None if kind == "default" else scaling}
    new = {"rope_parameters": {"rope_theta": theta, **scaling}}
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
