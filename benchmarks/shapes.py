"""Models and workloads that speed is measured on: the sizes of Qwen2.5 with random weights, and chat-shaped lengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np

COMMON: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "sliding_window": None,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}


def sizes(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int, tied: bool) -> dict[str, Any]:
    """Sizes of a decoder, in config.json's words."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


SHAPES = {  # Qwen2.5-0.5B, 1.5B and 7B; test: small enough for a CPU to run in a test
    "0.5b": sizes(896, 24, 14, 2, 4864, 151_936, True),
    "1.5b": sizes(1536, 28, 12, 2, 8960, 151_936, True),
    "7b": sizes(3584, 28, 28, 4, 18_944, 152_064, False),
    "test": sizes(128, 2, 4, 2, 256, 512, False),
}


def write_config(shape: str, root: str | Path) -> str:
    """Writes ROOT/SHAPE/config.json, with no weights beside it (for load_format="dummy"); returns the folder."""
    folder = Path(root) / shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**COMMON, **SHAPES[shape]}))
    return str(folder)


def random_ids(rng: np.random.Generator, length: int, vocab: int = 150_000) -> list[int]:
    """Token ids without structure: no two prompts share a beginning."""
    ids: list[int] = rng.integers(0, vocab, length).tolist()
    return ids


def chat_lengths(count: int = 1000, seed: int = 1234) -> tuple[list[int], list[int]]:
    """Prompt and output lengths of chat traffic, log-normal: 1000 of them have 231,415 prompt and 212,211 output tokens."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(4.8, 1.1, count), 4, 2048).astype(int)
    outputs = np.clip(rng.lognormal(5.0, 0.9, count), 4, 1024).astype(int)
    return prompts.tolist(), outputs.tolist()
