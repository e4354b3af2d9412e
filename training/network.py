"""The Qwen2 decoder in plain PyTorch, with the parameter names of a Hugging Face checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.vocabulary import MAX_POSITIONS, VOCAB_SIZE

ROPE_THETA = 10000.0
NORM_EPSILON = 1e-6
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of the network. The defaults are those of the bundled model: 8.4 million parameters."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 256
    num_hidden_layers: int = 8
    intermediate_size: int = 768
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64

    def config(self) -> dict[str, Any]:
        """config.json, readable by transformers 4 and 5: each renamed key under both names."""
        sizes = asdict(self)
        rope = {"rope_theta": ROPE_THETA, "rope_type": "default"}
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "hidden_act": "silu",
            "initializer_range": INIT_STD,
            "max_position_embeddings": MAX_POSITIONS,
            "max_window_layers": self.num_hidden_layers,
            "model_type": "qwen2",
            "pad_token_id": 0,
            "rms_norm_eps": NORM_EPSILON,
            "rope_parameters": rope,
            "rope_scaling": None,
            "rope_theta": ROPE_THETA,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            **sizes,
        }


def rope_table(num_positions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [num_positions, head_dim]."""
    rates = ROPE_THETA ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), rates)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (Su et al. 2021) in the half-split form of Hugging Face checkpoints. `x`: [batch, heads, tokens, dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, num_tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, num_tokens, -1, self.shape.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        share = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, num_tokens, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """Token ids to the last hidden state; `logits` applies the tied output embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            depth_std = INIT_STD / (2 * self.shape.num_hidden_layers) ** 0.5
            nn.init.normal_(module.self_attn.o_proj.weight, std=depth_std)
            nn.init.normal_(module.mlp.down_proj.weight, std=depth_std)

    def forward(self, tokens: Tensor, mask: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """`tokens` [batch, n], `mask` bool [batch, 1, n, n]; returns [batch, n, hidden_size]."""
        cos, sin = (part[: tokens.shape[1]] for part in table)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights in bfloat16 under the names of a Qwen2 checkpoint. The output embedding is the input's."""
        return {
            f"model.{name}": value.detach().to("cpu", torch.bfloat16).contiguous()
            for name, value in self.state_dict().items()
        }


def document_mask(documents: Tensor) -> Tensor:
    """Causal attention inside each document. `documents` [batch, n] numbers them; returns bool [batch, 1, n, n]."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril_()[:, None]
