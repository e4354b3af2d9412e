"""WholeStep: a decoding step by the one operator that knows all layers, where a backend has it and the model is of its kind."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from quire.layers.linear import PackedLinear
from quire.ops.decode_step import DecoderTensors, LayerTensors
from quire.ops.decode_step import decode_step as reference
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Ops
from quire.quant.none import Unquantized

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model files whose layers compute what decode_step says


class WholeStep:
    """Of one model, whose weights are in place."""

    def __init__(self, model: nn.Module, ops: Ops) -> None:
        self._run = ops.decode_step
        # The reference is there to compare with; layers one by one are faster.
        self._net = None if ops.decode_step is reference else gather(model)

    def logits(self, fwd: ForwardBatch) -> Tensor | None:
        """Logits [B, V] of a decoding step; None = nothing was done, and layers one by one are the way."""
        if self._net is None or fwd.max_query_len != 1 or fwd.num_tokens != fwd.num_sequences:
            return None
        return self._run(self._net, fwd)


def decode_logits(model: Any, whole: WholeStep, fwd: ForwardBatch) -> Tensor:
    """Logits [B, V] of a decoding step, as the head gives them: by the one operator, or layer by layer."""
    logits = whole.logits(fwd)
    if logits is None:
        logits = model.compute_logits(model(fwd.input_ids, fwd.positions, fwd))
    return logits


def decode_likeliest(model: Any, whole: WholeStep, greedy: Callable[[Tensor], Tensor], fwd: ForwardBatch) -> Tensor:
    """The likeliest token [B] of each row of a decoding step; layer by layer without logits."""
    logits = whole.logits(fwd)
    if logits is not None:
        return greedy(logits)
    ids: Tensor = model.likeliest(model(fwd.input_ids, fwd.positions, fwd))
    return ids


def gather(model: Any) -> DecoderTensors | None:
    """What `model` computes with; None if its layers do anything that decode_step does not."""
    if type(model).__module__.rpartition(".")[2] not in FAMILIES:
        return None
    decoder = model.model
    attends = [layer.self_attn.attend for layer in decoder.layers]
    qkv = decoder.layers[0].self_attn.qkv_proj
    if not all(map(_is_plain, decoder.layers)) or len({(a.scale, id(a.rope)) for a in attends}) != 1:
        return None
    return DecoderTensors(
        embedding=decoder.embed_tokens.weight,
        layers=tuple(_layer(layer) for layer in decoder.layers),
        norm=decoder.norm.weight,
        head=decoder.embed_tokens.weight if model.lm_head.weight is None else model.lm_head.weight,
        cos_sin=attends[0].rope.cos_sin,
        num_heads=qkv.head_counts[0],
        num_kv_heads=qkv.head_counts[1],
        head_dim=qkv.head_dim,
        eps=decoder.norm.eps,
        scale=attends[0].scale,
    )


def _is_plain(layer: Any) -> bool:
    """Plain weights, no bias but that of q, k and v."""
    attention, mlp = layer.self_attn, layer.mlp
    linears: list[PackedLinear] = [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]
    return all(isinstance(p.quant, Unquantized) for p in linears) and all(p.bias is None for p in linears[1:])


def _layer(layer: Any) -> LayerTensors:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerTensors(
        qkv=attention.qkv_proj.weight,
        qkv_bias=attention.qkv_proj.bias,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        out=attention.o_proj.weight,
        gate_up=mlp.gate_up_proj.weight,
        down=mlp.down_proj.weight,
        input_norm=layer.input_layernorm.weight,
        inner_norm=layer.post_attention_layernorm.weight,
        window=attention.attend.window,
    )
