"""Checkpoints for tests, made in a moment: a small model with seeded random weights and a byte-level tokenizer. No network.

Import it as `tiny_checkpoints`: pytest puts this folder on the path.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS, IM_START, IM_END, BOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ġ", "a"), ("l", "l"), ("he", "ll"), ("hell", "o")]
VOCAB_SIZE = 256 + len(MERGES) + 4


def byte_tokenizer(folder: Path, *, bos: bool = False) -> Path:
    """Writes tokenizer files: 256 bytes, a few merges, four special tokens. Every id below VOCAB_SIZE has a token.

    bos  put <|bos|> before every text
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, *("".join(merge) for merge in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (EOS, IM_START, IM_END, BOS)])
    if bos:
        bos_id = tokenizer.token_to_id(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": BOS if bos else None,
        "clean_up_tokenization_spaces": False, "model_max_length": 4096, "chat_template": CHATML,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tiny_qwen2(folder: Path, *, seed: int = 0, max_len: int = 512, bos: bool = False, **changes: object) -> Path:
    """Qwen2 with 2 layers and hidden size 64, weights drawn from `seed`, wide enough that greedy tokens vary."""
    import torch
    from safetensors.torch import save_file

    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": max_len, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "hidden_act": "silu", "torch_dtype": "float32", "eos_token_id": VOCAB_SIZE - 4, "use_sliding_window": False,
        **changes,
    }  # fmt: skip
    byte_tokenizer(folder, bos=bos)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape, generator=generator) * scale
        for name, shape, scale in _qwen2_shapes(config)
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _qwen2_shapes(config: dict) -> list[tuple[str, tuple[int, ...], float]]:
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    shapes = [("model.embed_tokens.weight", (vocab, hidden), 1.0), ("model.norm.weight", (hidden,), 1.0)]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes += [
                (f"{p}self_attn.{name}_proj.weight", (rows, hidden), 0.3),
                (f"{p}self_attn.{name}_proj.bias", (rows,), 0.1),
            ]
        shapes += [
            (f"{p}self_attn.o_proj.weight", (hidden, hidden), 0.3),
            (f"{p}mlp.gate_proj.weight", (inter, hidden), 0.3),
            (f"{p}mlp.up_proj.weight", (inter, hidden), 0.3),
            (f"{p}mlp.down_proj.weight", (hidden, inter), 0.3),
            (f"{p}input_layernorm.weight", (hidden,), 1.0),
            (f"{p}post_attention_layernorm.weight", (hidden,), 1.0),
        ]
    return [*shapes, ("lm_head.weight", (vocab, hidden), 0.5)]


THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


def thinking_tokenizer(folder: Path) -> Path:
    """byte_tokenizer with <think> and </think>, and a template that begins the reasoning."""
    byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": THINKING}))
    return folder


def thinking_qwen2(folder: Path, **options: object) -> Path:
    """tiny_qwen2 with that tokenizer."""
    tiny_qwen2(folder, vocab_size=VOCAB_SIZE + 2, **options)  # type: ignore[arg-type]
    return thinking_tokenizer(folder)
