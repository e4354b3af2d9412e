"""decode_layers on Hopper GPUs: kernels one after the other, of which products do their neighbours' norms.

A norm between two products costs what a kernel costs at the least, twice a layer. So the product before it adds its results to the
residual and gives that times the norm's weight, with sums of squares; the product after it divides its results by each row's root mean square.
"""

import torch
from torch import Tensor

from quire.backends.cuda import _product, linear, linear_silu_mul, rotary_attention
from quire.backends.cuda._ahead import is_collecting
from quire.backends.cuda._product import Undivided, why_not
from quire.backends.cuda._product_tiles import Joined, Tile, choose_joined
from quire.backends.triton import add_rms_norm, rms_norm
from quire.ops.decode_step import DecoderTensors, LayerTensors
from quire.ops.embedding import embedding
from quire.ops.forward_batch import ForwardBatch

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "decode_layers"


def run(net: DecoderTensors, fwd: ForwardBatch) -> Tensor | None:
    """See quire.ops.decode_layers."""
    tiles = _tiles(net, fwd.num_sequences)
    if tiles is None:
        return None
    # A model gone through ahead has one layer, which is first and last; a second one makes every kernel appear.
    layers, caches = (net.layers * 2, fwd.kv_caches * 2) if is_collecting() else (net.layers, fwd.kv_caches)
    residual = embedding(fwd.input_ids, net.embedding)
    x: Tensor | Undivided = rms_norm.run(residual, layers[0].input_norm, net.eps)
    # The last norm is done whole, as the head may be anybody's.
    next_norms = [*(layer.input_norm for layer in layers[1:]), net.norm]
    next_tiles = [*(tiles.down for _ in layers[1:]), None]
    for layer, kv, norm, tile in zip(layers, caches, next_norms, next_tiles, strict=True):
        qkv = _after(x, layer.qkv, layer.qkv_bias, tiles.qkv)
        heads = _attend(net, layer, qkv, kv, fwd)
        x, residual = _before(heads, layer.out, tiles.out, residual, layer.inner_norm, net.eps)
        inner = _after_gated(x, layer.gate_up, tiles.gate_up)
        x, residual = _before(inner, layer.down, tile, residual, norm, net.eps)
    return x if isinstance(x, Tensor) else None


def _tiles(net: DecoderTensors, num_rows: int) -> Joined | None:
    """Tiles for so many rows; None = layers one by one are as fast, or this decoder is of another kind."""
    layer = net.layers[0]
    if net.embedding.dtype != torch.bfloat16 or layer.qkv.dtype != torch.bfloat16:
        return None  # values that are not divided yet may be too large for float16
    if any(t.data_ptr() % 16 for each in net.layers for t in (each.qkv, each.out, each.gate_up, each.down)):
        return None  # the copy engine cannot read them
    return choose_joined(num_rows, layer.qkv.shape[0], layer.out.shape[0], layer.out.shape[1], layer.down.shape[1])


def _after(x: Tensor | Undivided, weight: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """The product after a norm: with its second half, where `x` is half done."""
    return linear.run(x, weight, bias) if isinstance(x, Tensor) else _product.multiply(x, weight, bias, tile)


def _after_gated(x: Tensor | Undivided, weight: Tensor, tile: Tile) -> Tensor:
    if isinstance(x, Tensor):
        return linear_silu_mul.run(x, weight)
    return _product.multiply(x, weight, None, tile, gated=True)


def _before(
    x: Tensor, weight: Tensor, tile: Tile | None, residual: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor | Undivided, Tensor]:
    """The product before a norm: that of residual + x @ weight.T, half done where there is a tile for it, and the sum; gives `residual` away."""
    if tile:
        return _product.add(x, weight, tile, residual, norm, eps), residual
    return add_rms_norm.run(linear.run(x, weight), residual, norm, eps)


def _attend(net: DecoderTensors, layer: LayerTensors, qkv: Tensor, kv: Tensor, fwd: ForwardBatch) -> Tensor:
    heads = qkv.view(qkv.shape[0], -1, net.head_dim)
    q, k, v = torch.split(heads, [net.num_heads, net.num_kv_heads, net.num_kv_heads], dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = rms_norm.run(q, layer.q_norm, net.eps), rms_norm.run(k, layer.k_norm, net.eps)
    return rotary_attention.run(q, k, v, net.cos_sin, kv, fwd, net.scale, layer.window).flatten(1)
