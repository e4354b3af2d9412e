"""paged_attention: causal attention of packed queries over a paged KV cache. Source: arXiv:2309.06180 section 4."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import Inputs, OpSpec, Tolerance, randn
from quire.ops.forward_batch import ForwardBatch

KEY_TILE = 128  # keys are reduced in tiles at fixed absolute positions, so a token's result is the same in any chunk


def paged_attention(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, window: int = 0) -> Tensor:
    """Causal attention of packed queries over a paged KV cache; grouped heads share keys.

    T tokens this step, B sequences, Hq/Hkv heads, D head size, N blocks of P tokens, M blocks a row.
      q       [T, Hq, D]          last dimension contiguous; Hq a multiple of Hkv
      kv      [2, N, P, Hkv, D]   keys then values; already holds this step's tokens (write_kv runs first)
      fwd     query_start_loc [B+1] i32; seq_lens [B] i32, this step included; block_tables [B, M] i32
      scale   multiplies q·k before softmax; usually D ** -0.5
      window  a token sees itself and the window-1 tokens before it; 0 = all before it
    Returns   [T, Hq, D] in q.dtype, contiguous. Rows of padding sequences (seq_len 0) are zero.
    Softmax in fp32. On the CPU a token's result does not depend on the chunk it is computed in or on its batch mates.
    """
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    starts, lens = fwd.query_start_loc.tolist(), fwd.seq_lens.tolist()
    for b, seq_len in enumerate(lens):
        rows = slice(starts[b], starts[b + 1])
        if seq_len == 0 or rows.start == rows.stop:
            continue
        keys, values = _gather(kv, fwd.block_tables[b], seq_len)
        for t in range(rows.start, rows.stop):
            last = seq_len - (rows.stop - t)  # absolute position of this query
            first = max(0, last + 1 - window) if window else 0
            out[t] = _attend_one(q[t], keys, values, first, last, scale)
    return out


def _gather(kv: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    block_size = kv.shape[2]
    blocks = block_table[: -(-seq_len // block_size)].long()
    keys, values = kv[:, blocks].flatten(1, 2)[:, :seq_len]
    return keys, values  # each [seq_len, Hkv, D]


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, first: int, last: int, scale: float) -> Tensor:
    """Online softmax of one query [Hq, D] over keys [first, last], tile by tile."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    kv_heads = keys.shape[1]
    query = q.to(wide).view(kv_heads, -1, q.shape[-1])  # [Hkv, G, D]
    peak = torch.full((*query.shape[:2], 1), float("-inf"), dtype=wide, device=q.device)
    total = torch.zeros_like(peak)
    acc = torch.zeros_like(query)
    for start in range(first - first % KEY_TILE, last + 1, KEY_TILE):
        low, high = max(start, first), min(start + KEY_TILE, last + 1)
        k, v = keys[low:high].to(wide), values[low:high].to(wide)
        scores = (query.unsqueeze(1) * k.permute(1, 0, 2).unsqueeze(2)).sum(-1).transpose(
            1, 2
        ) * scale  # [Hkv, G, keys]
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - new_peak).exp(), (peak - new_peak).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        acc = acc * shrink + (weights.unsqueeze(-1) * v.permute(1, 0, 2).unsqueeze(1)).sum(2)
        peak = new_peak
    return (acc / total).reshape(q.shape).to(q.dtype)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    cases: tuple[tuple[list[tuple[int, int]], int, int, int, int, int], ...] = (
        # (query_len, seq_len) of each sequence, Hq, Hkv, D, block size, window
        ([(1, 1)], 4, 2, 64, 16, 0),
        ([(1, 37), (1, 5), (1, 300)], 7, 1, 64, 16, 0),
        ([(5, 5), (1, 130), (40, 70), (3, 129)], 4, 4, 128, 8, 0),
        ([(1, 90), (33, 90)], 8, 2, 64, 32, 20),
        ([(1, 17), (0, 0), (2, 40)], 4, 2, 32, 16, 0),
    )
    for lens, q_heads, kv_heads, head_dim, block_size, window in cases:
        fwd, num_blocks = _random_batch(generator, lens, block_size, device)
        yield {
            "q": randn(generator, sum(n for n, _ in lens), q_heads, head_dim, dtype=dtype, device=device),
            "kv": randn(generator, 2, num_blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device),
            "fwd": fwd,
            "scale": head_dim**-0.5,
            "window": window,
        }


def _random_batch(
    generator: torch.Generator, lens: list[tuple[int, int]], block_size: int, device: torch.device
) -> tuple[ForwardBatch, int]:
    per_row = [-(-s // block_size) for _, s in lens]
    num_blocks = sum(per_row) + 3
    ids = torch.randperm(num_blocks - 1, generator=generator) + 1
    tables = torch.zeros(len(lens), max(per_row), dtype=torch.int32)
    used = 0
    for b, count in enumerate(per_row):
        tables[b, :count] = ids[used : used + count]
        used += count
    starts = torch.tensor([0, *(n for n, _ in lens)]).cumsum(0).int()
    positions = torch.cat([torch.arange(s - n, s) for n, s in lens])
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    fwd = ForwardBatch(
        input_ids=torch.zeros(len(positions), dtype=torch.int64, device=device),
        positions=positions.to(device),
        slot_mapping=empty,
        query_start_loc=starts.to(device),
        seq_lens=torch.tensor([s for _, s in lens], dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        logits_indices=empty,
        max_query_len=max(n for n, _ in lens),
        max_seq_len=max(s for _, s in lens),
        kv_caches=[],
    )
    return fwd, num_blocks


SPEC = OpSpec(
    "paged_attention",
    paged_attention,
    {torch.float32: Tolerance(5e-6), torch.float16: Tolerance(2e-3), torch.bfloat16: Tolerance(1e-2)},
    make_inputs,
)
