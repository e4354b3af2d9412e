"""WholeStep: a decoding step by an operator that knows all layers, where a backend has one and the model is of its kind."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from quire.layers.linear import PackedLinear
from quire.ops.decode_layers import decode_layers
from quire.ops.decode_step import DecoderTensors, LayerTensors, decode_step
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Ops
from quire.quant.none import Unquantized

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model files whose layers compute what decode_step says


class WholeStep:
    """Of one model, whose weights are in place."""

    def __init__(self, model: nn.Module, ops: Ops) -> None:
        # References are there to compare with; layers one by one are faster.
        self._step = None if ops.decode_step is decode_step else ops.decode_step
        self._layers = None if ops.decode_layers is decode_layers else ops.decode_layers
        self._net = gather(model) if self._step or self._layers else None

    def logits(self, fwd: ForwardBatch) -> Tensor | None:
        """Logits [B, V] of a decoding step; None = nothing was done, and there is no whole step for it."""
        return self._do(self._step, fwd)

    def hidden(self, fwd: ForwardBatch) -> Tensor | None:
        """Hidden states [B, H] of a decoding step, as the model gives them; None = nothing was done, and layers one by one are the way."""
        return self._do(self._layers, fwd)

    def _do(self, run: Callable[..., Tensor | None] | None, fwd: ForwardBatch) -> Tensor | None:
        if run is None or self._net is None or not fwd.only_decodes:
            return None
        return run(self._net, fwd)


def decode_logits(model: Any, whole: WholeStep, fwd: ForwardBatch) -> Tensor:
    """Logits [B, V] of a decoding step, as the head gives them: by one operator, or layer by layer."""
    logits = whole.logits(fwd)
    return model.compute_logits(_hidden(model, whole, fwd)) if logits is None else logits


def decode_likeliest(model: Any, whole: WholeStep, greedy: Callable[[Tensor], Tensor], fwd: ForwardBatch) -> Tensor:
    """The likeliest token [B] of each row of a decoding step; layer by layer without logits."""
    logits = whole.logits(fwd)
    if logits is not None:
        return greedy(logits)
    ids: Tensor = model.likeliest(_hidden(model, whole, fwd))
    return ids


def _hidden(model: Any, whole: WholeStep, fwd: ForwardBatch) -> Tensor:
    hidden = whole.hidden(fwd)
    return model(fwd.input_ids, fwd) if hidden is None else hidden


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
