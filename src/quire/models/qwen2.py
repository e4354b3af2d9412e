"""Qwen2 dense decoder: Qwen1.5, 2, 2.5, QwQ, DeepSeek-R1-Distill-Qwen. As Llama, with biases on q, k, v and optional sliding windows.

Source: transformers models/qwen2/modeling_qwen2.py; arXiv:2407.10671. Parity: tests/parity/models/test_qwen2.py.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from quire.hf_config import HfConfig
from quire.layers.attention import Attention
from quire.layers.build import Build
from quire.layers.decoder import DecoderConfig, sliding_windows
from quire.layers.embedding import Embedding, LmHead
from quire.layers.linear import GatedMlp, Linear, QkvLinear
from quire.layers.norm import RmsNorm
from quire.layers.rotary import RopeConfig, Rotary
from quire.ops.forward_batch import ForwardBatch
from quire.weights.weight_map import QKV_GATE_UP, WeightMap

ARCHITECTURES = ("Qwen2ForCausalLM",)
WEIGHTS = WeightMap(fuse=QKV_GATE_UP)


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Sizes, norm epsilon, rotary kind and each layer's window (0 = none)."""

    eps: float = 1e-6
    rope: RopeConfig = RopeConfig(10000.0)
    windows: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, hf: HfConfig) -> "Config":
        hf.require("hidden_act", "silu", default="silu")
        return cls(
            **DecoderConfig.sizes(hf, tied_default=False),
            eps=hf.float("rms_norm_eps", 1e-6),
            rope=RopeConfig.from_hf(hf),
            windows=sliding_windows(hf),
        )


class SelfAttention(nn.Module):
    def __init__(self, c: Config, build: Build, rope: Rotary, layer: int) -> None:
        super().__init__()
        self.qkv_proj = QkvLinear(build, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, bias=True)
        self.attend = Attention(build, layer, c.num_heads, c.head_dim, rope, window=c.windows[layer])
        self.o_proj = Linear(build, c.num_heads * c.head_dim, c.hidden_size)

    def forward(self, x: Tensor, fwd: ForwardBatch) -> Tensor:
        out: Tensor = self.o_proj(self.attend(*self.qkv_proj(x), fwd))
        return out


class Layer(nn.Module):
    def __init__(self, c: Config, build: Build, rope: Rotary, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(build, c.hidden_size, c.eps)
        self.self_attn = SelfAttention(c, build, rope, layer)
        self.post_attention_layernorm = RmsNorm(build, c.hidden_size, c.eps)
        self.mlp = GatedMlp(build, c.hidden_size, c.inner_size)

    def forward(self, x: Tensor, residual: Tensor | None, fwd: ForwardBatch) -> tuple[Tensor, Tensor]:
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, fwd)
        x, residual = self.post_attention_layernorm.add(x, self.self_attn.attend.kept(residual, fwd))
        return self.mlp(x), residual


class Decoder(nn.Module):
    def __init__(self, c: Config, build: Build) -> None:
        super().__init__()
        self.embed_tokens = Embedding(build, c.vocab_size, c.hidden_size)
        self.rope = Rotary(build, c.rope, c.head_dim)
        self.layers = nn.ModuleList(Layer(c, build, self.rope, i) for i in range(c.num_layers))
        self.norm = RmsNorm(build, c.hidden_size, c.eps)

    def forward(self, input_ids: Tensor, fwd: ForwardBatch) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, fwd)
        out: Tensor = self.norm.add(x, residual)[0]
        return out


class Model(nn.Module):
    """input_ids [T] -> hidden [T, H], or [B, H] where fwd.last_rows tell which; positions are those of the ForwardBatch."""

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.model = Decoder(config, build)
        self.lm_head = LmHead(build, config.vocab_size, config.hidden_size, config.tied)

    def forward(self, input_ids: Tensor, fwd: ForwardBatch) -> Tensor:
        hidden: Tensor = self.model(input_ids, fwd)
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S, V]."""
        logits: Tensor = self.lm_head(hidden, self.model.embed_tokens.weight)
        return logits

    def likeliest(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S], the likeliest token of each row as ops.greedy has it; logits need not be made."""
        ids: Tensor = self.lm_head.likeliest(hidden, self.model.embed_tokens.weight)
        return ids
