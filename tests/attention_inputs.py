"""Inputs of attention of rows with one query, NaN wherever nothing may be read, and what must come out."""

from dataclasses import replace

import op_parity
import torch
from torch import Tensor

from quire.ops.contract import Inputs
from quire.ops.paged_attention import SPEC
from quire.ops.rotary_write_kv import rotary_write_kv

Case = tuple[list[int], int, int, int, int]  # lengths, query heads, key heads, head size, block size


def decoding(case: Case, dtype: torch.dtype, device: str, seed: int = 5) -> tuple[Inputs, Inputs]:
    """Inputs of rotary_attention, and those of paged_attention after the write of keys and values.

    The newest key's slot holds NaN before."""
    lens, q_heads, kv_heads, head_size, block_size = case
    rows = [(1, n) for n in lens]
    spread = op_parity.attention_inputs((rows, q_heads, kv_heads, head_size, block_size, 0), dtype, seed)
    fwd, kv = spread["fwd"], spread["kv"]
    last = (fwd.seq_lens - 1).clamp(min=0).long()
    slots = fwd.block_tables[torch.arange(len(lens)), last // block_size].long() * block_size + last % block_size
    fwd = replace(fwd, slot_mapping=slots.where(fwd.seq_lens > 0, -1), positions=last)
    kv.view(2, -1, kv_heads, head_size)[:, slots[fwd.seq_lens > 0]] = float("nan")
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(lens), q_heads + 2 * kv_heads, head_size, generator=generator).to(dtype)
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand(max(lens) + 1, head_size // 2, generator=generator) * 6.28
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    after = kv.clone()
    turned, _ = rotary_write_kv(q.clone(), k.clone(), v, fwd.positions, cos_sin, after, fwd.slot_mapping)
    before = {"q": q, "k": k, "v": v, "cos_sin": cos_sin, "kv": kv, "fwd": fwd, "scale": head_size**-0.5}
    plain = {"q": turned, "kv": after, "fwd": fwd, "scale": head_size**-0.5}
    return _to(before, device), _to(plain, device)


def _to(inputs: Inputs, device: str) -> Inputs:
    return {name: op_parity.to_device(value, device) for name, value in inputs.items()}


def assert_attended(got: Tensor, plain: Inputs) -> None:
    """`got` is paged_attention of `plain`, and zero for rows of no length."""
    expected = op_parity.dense_attention(**plain)
    assert op_parity.error(got, expected.cpu()) <= SPEC.tolerance[got.dtype].relative
    fwd = plain["fwd"]
    num_queries = fwd.query_start_loc.diff()
    assert not got[(fwd.seq_lens == 0).repeat_interleave(num_queries)].any()


def assert_written(before: Tensor, inputs: Inputs, plain: Inputs) -> None:
    """The cache, which was `before`, has the newest keys and values and is else as it was."""
    slots = inputs["fwd"].slot_mapping
    is_new = torch.zeros(before.shape[1] * before.shape[2], dtype=torch.bool, device=before.device)
    is_new[slots[slots >= 0]] = True
    got, old, new = (kv.flatten(1, 2) for kv in (inputs["kv"], before, plain["kv"]))
    assert torch.equal(got[:, ~is_new].view(torch.int16), old[:, ~is_new].view(torch.int16))
    assert op_parity.error(got[0, is_new], new[0, is_new].cpu()) < 2e-3  # turned: the last bit may differ
    assert torch.equal(got[1, is_new], new[1, is_new])
