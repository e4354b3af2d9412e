"""OPT decoder: learned positions, layer norms with biases, ReLU, all heads with their own keys.

The 350m checkpoint differs: norms after each block, no final norm, and an embedding narrower than the model.
Source: transformers models/opt/modeling_opt.py; arXiv:2205.01068. Parity: tests/parity/models/test_opt.py.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from quire.errors import UnsupportedModel
from quire.hf_config import HfConfig
from quire.layers.attention import Attention
from quire.layers.build import Build
from quire.layers.decoder import DecoderConfig
from quire.layers.embedding import Embedding, LmHead
from quire.layers.linear import Linear, QkvLinear
from quire.layers.norm import LayerNorm
from quire.ops.forward_batch import ForwardBatch
from quire.weights.weight_map import WeightMap

ARCHITECTURES = ("OPTForCausalLM",)
WEIGHTS = WeightMap(fuse={"qkv_proj": ("q_proj", "k_proj", "v_proj")}, rename={"decoder.": "model.decoder."})
POSITION_OFFSET = 2  # the first two rows of the position table are unused


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Sizes, and what sets 350m apart.

    embedding_size  width of the token embedding and the head
    norm_first      norms stand before each block (else after)
    final_norm      a norm follows the last block
    """

    embedding_size: int = 0
    norm_first: bool = True
    final_norm: bool = True
    bias: bool = True

    @classmethod
    def from_hf(cls, hf: HfConfig) -> "Config":
        hf.require("activation_function", "relu", default="relu")
        hf.require("layer_norm_elementwise_affine", True, default=True)
        hidden_size, num_heads = hf.int("hidden_size"), hf.int("num_attention_heads")
        if num_heads < 1 or hidden_size % num_heads:
            raise UnsupportedModel(f"{hf.source}: hidden_size {hidden_size} is not a multiple of {num_heads} heads")
        norm_first = hf.bool("do_layer_norm_before", True)
        return cls(
            vocab_size=hf.int("vocab_size"),
            hidden_size=hidden_size,
            inner_size=hf.int("ffn_dim"),
            num_layers=hf.int("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden_size // num_heads,
            max_position=hf.int("max_position_embeddings"),
            tied=hf.bool("tie_word_embeddings", True),
            gated=False,
            embedding_size=hf.int("word_embed_proj_dim", hidden_size),
            norm_first=norm_first,
            final_norm=norm_first and not hf.bool("_remove_final_layer_norm", False),
            bias=hf.bool("enable_bias", True),
        )


class SelfAttention(nn.Module):
    def __init__(self, c: Config, build: Build, layer: int) -> None:
        super().__init__()
        self.qkv_proj = QkvLinear(build, c.hidden_size, c.num_heads, c.num_heads, c.head_dim, c.bias)
        self.attend = Attention(build, layer, c.num_heads, c.head_dim)
        self.out_proj = Linear(build, c.hidden_size, c.hidden_size, c.bias)

    def forward(self, x: Tensor, fwd: ForwardBatch) -> Tensor:
        out: Tensor = self.out_proj(self.attend(*self.qkv_proj(x), fwd))
        return out


class Layer(nn.Module):
    def __init__(self, c: Config, build: Build, layer: int) -> None:
        super().__init__()
        self.norm_first = c.norm_first
        self.self_attn = SelfAttention(c, build, layer)
        self.self_attn_layer_norm = LayerNorm(build, c.hidden_size)
        self.fc1 = Linear(build, c.hidden_size, c.inner_size, c.bias)
        self.fc2 = Linear(build, c.inner_size, c.hidden_size, c.bias)
        self.final_layer_norm = LayerNorm(build, c.hidden_size)

    def forward(self, x: Tensor, fwd: ForwardBatch) -> Tensor:
        if self.norm_first:
            x = self._kept(x, fwd) + self.self_attn(self.self_attn_layer_norm(x), fwd)
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(self._kept(x, fwd) + self.self_attn(x, fwd))
        out: Tensor = self.final_layer_norm(x + self._feed_forward(x))
        return out

    def _kept(self, x: Tensor, fwd: ForwardBatch) -> Tensor:
        return self.self_attn.attend.kept(x, fwd)

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class Decoder(nn.Module):
    def __init__(self, c: Config, build: Build) -> None:
        super().__init__()
        if build.max_model_len > c.max_position:
            raise UnsupportedModel(
                f"this OPT model has learned {c.max_position} positions: --max-model-len {build.max_model_len} is too long"
            )
        narrow = c.embedding_size != c.hidden_size
        self.embed_tokens = Embedding(build, c.vocab_size, c.embedding_size)
        self.embed_positions = Embedding(build, c.max_position + POSITION_OFFSET, c.hidden_size)
        self.project_in = Linear(build, c.embedding_size, c.hidden_size) if narrow else None
        self.project_out = Linear(build, c.hidden_size, c.embedding_size) if narrow else None
        self.layers = nn.ModuleList(Layer(c, build, i) for i in range(c.num_layers))
        self.final_layer_norm = LayerNorm(build, c.hidden_size) if c.final_norm else None

    def forward(self, input_ids: Tensor, fwd: ForwardBatch) -> Tensor:
        x: Tensor = self.embed_tokens(input_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + self.embed_positions(fwd.positions + POSITION_OFFSET)
        for layer in self.layers:
            x = layer(x, fwd)
        if self.final_layer_norm is not None:
            x = self.final_layer_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return x


class Body(nn.Module):
    def __init__(self, c: Config, build: Build) -> None:
        super().__init__()
        self.decoder = Decoder(c, build)


class Model(nn.Module):
    """input_ids [T] -> hidden [T, E], E the embedding's width; [B, E] where fwd.last_rows tell which."""

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.model = Body(config, build)
        self.lm_head = LmHead(build, config.vocab_size, config.embedding_size, config.tied)

    def forward(self, input_ids: Tensor, fwd: ForwardBatch) -> Tensor:
        hidden: Tensor = self.model.decoder(input_ids, fwd)
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, E] -> [S, V]."""
        logits: Tensor = self.lm_head(hidden, self.model.decoder.embed_tokens.weight)
        return logits

    def likeliest(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S], the likeliest token of each row as ops.greedy has it; logits need not be made."""
        ids: Tensor = self.lm_head.likeliest(hidden, self.model.decoder.embed_tokens.weight)
        return ids
