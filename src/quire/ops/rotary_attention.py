"""rotary_attention: a layer's attention from the products q, k and v on: rotation, the write to the paged cache, attention over it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops import paged_attention as attention
from quire.ops.contract import Inputs, OpSpec, randn
from quire.ops.forward_batch import ForwardBatch
from quire.ops.rotary_write_kv import rotary_write_kv


def rotary_attention(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0
) -> Tensor:
    """quire.ops.rotary_write_kv with the positions and slots of `fwd`, then quire.ops.paged_attention.

    q [T, Hq, D], k and v [T, Hkv, D], cos_sin [max_position, R] fp32, kv [2, N, P, Hkv, D], which is written in place.
    A row with one query has the position seq_len - 1, and its slot is where its block table says. Gives q and k away.
    Returns [T, Hq, D], contiguous.
    """
    q, kv = rotary_write_kv(q, k, v, fwd.positions, cos_sin, kv, fwd.slot_mapping)
    return attention.paged_attention(q, kv, fwd, scale, window)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for inputs in attention.make_inputs(generator, dtype, device):
        q, kv, fwd = inputs.pop("q"), inputs["kv"], inputs["fwd"]
        tokens, q_heads, head_dim = q.shape
        kv_heads, block_size = kv.shape[3], kv.shape[2]
        row = torch.repeat_interleave(torch.arange(fwd.num_sequences, device=device), fwd.query_start_loc.diff())
        blocks = fwd.block_tables[row, fwd.positions // block_size].long()
        fwd.slot_mapping = blocks * block_size + fwd.positions % block_size
        qkv = randn(generator, tokens, q_heads + 2 * kv_heads, head_dim, dtype=dtype, device=device)
        angles = torch.rand(300, head_dim // 2, generator=generator) * 6.28
        yield {
            "q": qkv[:, :q_heads],
            "k": qkv[:, q_heads : q_heads + kv_heads],
            "v": qkv[:, q_heads + kv_heads :],
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1).to(device),
            **inputs,
        }


SPEC = OpSpec("rotary_attention", rotary_attention, attention.SPEC.tolerance, make_inputs, mutates=("kv",))
