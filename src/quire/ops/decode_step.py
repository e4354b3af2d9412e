"""decode_step: one decoding step of a whole decoder, from token ids to logits, in one call.

For decoders as Llama's and its kin: norm, attention, norm, gated feed-forward, and nothing else. The reference is their layers' operators
one after the other; it is what an implementation is held against. Models run layer by layer where no backend has one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.add_rms_norm import add_rms_norm
from quire.ops.contract import Inputs, OpSpec, Tolerance, randn
from quire.ops.embedding import embedding
from quire.ops.forward_batch import ForwardBatch
from quire.ops.linear import linear
from quire.ops.linear_silu_mul import linear_silu_mul
from quire.ops.paged_attention import paged_attention
from quire.ops.rms_norm import rms_norm
from quire.ops.rotary import rotary
from quire.ops.write_kv import write_kv


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """One layer; Hq query heads and Hkv key heads of D, hidden size H, inner size I.

    qkv          [(Hq + 2·Hkv)·D, H], qkv_bias [(Hq + 2·Hkv)·D] or None
    q_norm, k_norm  [D], norms on each head before rotation, or both None
    out          [H, Hq·D]
    gate_up      [2·I, H]: gate, then up; down [H, I]
    input_norm, inner_norm  [H], before attention and before the feed-forward layer
    window       see paged_attention
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor
    input_norm: Tensor
    inner_norm: Tensor
    window: int


@dataclass(frozen=True, eq=False)
class DecoderTensors:
    """All that a decoder computes with. Two of them are equal only if they are the same object.

    embedding  [V, H]; head [V, H], perhaps the same tensor
    norm       [H], the last one
    cos_sin    [positions, D] fp32, see rotary
    scale      multiplies q·k before softmax
    """

    embedding: Tensor
    layers: tuple[LayerTensors, ...]
    norm: Tensor
    head: Tensor
    cos_sin: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float


def decode_step(net: DecoderTensors, fwd: ForwardBatch) -> Tensor | None:
    """One step of B sequences with one query each: writes their keys and values to the caches, returns logits [B, V] in the weights' dtype.

    fwd      input_ids [B], slot_mapping [B], seq_lens [B], block_tables [B, M], kv_caches; positions are seq_lens - 1. A row of length 0
             takes no part: it has slot -1, writes nothing, and its logits mean nothing (but are numbers).
    Returns  None, having done nothing, where an implementation has nothing faster than the layers one by one for this step or these sizes
    """
    return linear(hidden_states(net, fwd), net.head)


def hidden_states(net: DecoderTensors, fwd: ForwardBatch) -> Tensor:
    """The same without the head: [B, H] after the last norm."""
    x, residual = embedding(fwd.input_ids, net.embedding), None
    for layer, kv in zip(net.layers, fwd.kv_caches, strict=True):
        if residual is None:
            x, residual = rms_norm(x, layer.input_norm, net.eps), x
        else:
            x, residual = add_rms_norm(x, residual, layer.input_norm, net.eps)
        x = linear(_attend(net, layer, x, kv, fwd).flatten(1), layer.out)
        x, residual = add_rms_norm(x, residual, layer.inner_norm, net.eps)
        x = linear(linear_silu_mul(x, layer.gate_up), layer.down)
    return rms_norm(x, net.norm, net.eps) if residual is None else add_rms_norm(x, residual, net.norm, net.eps)[0]


def _attend(net: DecoderTensors, layer: LayerTensors, x: Tensor, kv: Tensor, fwd: ForwardBatch) -> Tensor:
    heads = linear(x, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, net.head_dim)
    q, k, v = torch.split(heads, [net.num_heads, net.num_kv_heads, net.num_kv_heads], dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = rms_norm(q, layer.q_norm, net.eps), rms_norm(k, layer.k_norm, net.eps)
    q, k = rotary(q, k, (fwd.seq_lens.long() - 1).clamp_min(0), net.cos_sin)
    write_kv(k, v, kv, fwd.slot_mapping)
    return paged_attention(q, kv, fwd, net.scale, layer.window)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for heads, kv_heads, head_dim, hidden, inner, vocab, lens, bias, norms, window in (
        (3, 1, 64, 192, 320, 300, [37], True, False, 0),
        (4, 2, 128, 256, 384, 1000, [300], False, True, 0),
        (14, 2, 64, 320, 640, 500, [1, 200, 0, 33], True, False, 50),
    ):
        net = random_decoder(
            generator, dtype, device, heads, kv_heads, head_dim, hidden, inner, vocab, bias, norms, window
        )
        yield {"net": net, "fwd": random_step(generator, net, lens, 16)}


def random_decoder(
    generator: torch.Generator, dtype: torch.dtype, device: torch.device, heads: int, kv_heads: int, head_dim: int, hidden: int,
    inner: int, vocab: int, bias: bool, norms: bool, window: int, num_layers: int = 2, num_positions: int = 512,
) -> DecoderTensors:  # fmt: skip
    """Random weights of a scale that keeps activations near 1."""

    def draw(*shape: int, scale: float = 0.0, around: float = 0.0) -> Tensor:
        values = randn(generator, *shape, dtype=torch.float32, device=torch.device("cpu"))
        return (values * (scale or shape[-1] ** -0.5) + around).to(device=device, dtype=dtype)

    def layer() -> LayerTensors:
        qkv = (heads + 2 * kv_heads) * head_dim
        return LayerTensors(
            draw(qkv, hidden), draw(qkv, scale=0.5) if bias else None,
            draw(head_dim, scale=0.1, around=1) if norms else None, draw(head_dim, scale=0.1, around=1) if norms else None,
            draw(hidden, heads * head_dim), draw(2 * inner, hidden), draw(hidden, inner),
            draw(hidden, scale=0.1, around=1), draw(hidden, scale=0.1, around=1), window,
        )  # fmt: skip

    angles = torch.arange(num_positions)[:, None] * 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(device=device, dtype=torch.float32)
    layers = tuple(layer() for _ in range(num_layers))
    return DecoderTensors(
        draw(vocab, hidden, scale=1), layers, draw(hidden, scale=0.1, around=1), draw(vocab, hidden), table,
        heads, kv_heads, head_dim, 1e-6, head_dim**-0.5,
    )  # fmt: skip


def random_step(generator: torch.Generator, net: DecoderTensors, lens: list[int], block_size: int) -> ForwardBatch:
    """A decoding step of rows of these lengths, blocks in random order; slots that hold no key of a row are NaN."""
    device, dtype = net.embedding.device, net.embedding.dtype
    per_row = [-(-n // block_size) for n in lens]
    ids = torch.randperm(sum(per_row) + 1, generator=generator).int() + 1
    tables = torch.zeros(len(lens), max(per_row) + 1, dtype=torch.int32)
    kv = torch.full((len(net.layers), 2, sum(per_row) + 3, block_size, net.num_kv_heads, net.head_dim), torch.nan)
    slots = torch.full((len(lens),), -1)
    for row, (length, count) in enumerate(zip(lens, per_row, strict=True)):
        tables[row, :count] = ids[sum(per_row[:row]) :][:count]
        if length:
            place = torch.arange(length - 1)
            old = tables[row, place // block_size].long(), place % block_size
            values = torch.randn(*kv.shape[:2], length - 1, *kv.shape[4:], generator=generator)
            kv[:, :, old[0], old[1]] = values
            slots[row] = tables[row, (length - 1) // block_size] * block_size + (length - 1) % block_size
    seq_lens = torch.tensor(lens, dtype=torch.int32)
    return ForwardBatch(
        input_ids=torch.randint(0, net.embedding.shape[0], (len(lens),), generator=generator).to(device),
        positions=(seq_lens.long() - 1).clamp_min(0).to(device),
        slot_mapping=slots.to(device),
        query_start_loc=torch.arange(len(lens) + 1, dtype=torch.int32, device=device),
        seq_lens=seq_lens.to(device),
        block_tables=tables.to(device),
        logits_indices=torch.arange(len(lens), device=device),
        max_query_len=1,
        max_seq_len=max(lens),
        kv_caches=list(kv.to(device=device, dtype=dtype).unbind(0)),
    )


# Two layers' roundings in a row, several of them on every path.
TOLERANCES = {torch.float32: Tolerance(1e-5), torch.float16: Tolerance(4e-3), torch.bfloat16: Tolerance(3e-2)}

SPEC = OpSpec("decode_step", decode_step, TOLERANCES, make_inputs)
