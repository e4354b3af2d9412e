"""paged_attention: causal attention of packed queries over a paged KV cache. Source: arXiv:2309.06180 section 4."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.contract import Inputs, OpSpec, Tolerance, randn
from quire.ops.forward_batch import ForwardBatch

LOG2_E = math.log2(math.e)  # kernels raise 2 to powers, not e
ROW_TILE = 8  # query rows are padded to a multiple, see quire.ops.linear
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
    counts = [end - start if length else 0 for start, end, length in zip(starts, starts[1:], lens, strict=False)]
    decoding = [b for b, count in enumerate(counts) if count == 1]
    for group in [decoding, *([b] for b, count in enumerate(counts) if count > 1)]:
        if not group:
            continue
        count = counts[group[0]]
        rows = torch.tensor([starts[b] for b in group], device=q.device)[:, None] + torch.arange(count, device=q.device)
        last = (
            torch.tensor([lens[b] for b in group], device=q.device)[:, None]
            - count
            + torch.arange(count, device=q.device)
        )
        tables = fwd.block_tables[torch.tensor(group, device=q.device)]
        out[rows] = _attend(q[rows], kv, tables, last, scale, window)
    return out


def _attend(q: Tensor, kv: Tensor, tables: Tensor, last: Tensor, scale: float, window: int) -> Tensor:
    """Online softmax over tiles of KEY_TILE keys of n sequences with c queries each.

    q [n, c, Hq, D]; tables [n, M]; last [n, c] = position of each query, the last key it sees. Every product has the same inner
    sizes and a number of rows that is a multiple of 8, and keys that a query does not see add exact zeros, so that its result
    depends neither on c nor on its neighbours.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    n, c, q_heads, head_dim = q.shape
    kv_heads = kv.shape[3]
    group = q_heads // kv_heads
    query = q.to(wide).view(n, c, kv_heads, group, head_dim).permute(0, 2, 1, 3, 4).reshape(n, kv_heads, c * group, -1)
    query = F.pad(query, (0, 0, 0, -(c * group) % ROW_TILE)) * scale
    last = F.pad(last.repeat_interleave(group, dim=1), (0, query.shape[2] - c * group))[:, None, :, None]
    first = (last + 1 - window).clamp_min(0) if window else torch.zeros_like(last)
    peak = torch.full((*query.shape[:3], 1), float("-inf"), dtype=wide, device=q.device)
    total, acc = torch.zeros_like(peak), torch.zeros_like(query)
    ends = last.amax(dim=(1, 2, 3))
    begin = int(first[:, :, : c * group].min()) // KEY_TILE * KEY_TILE
    for start in range(begin, int(last.max()) + 1, KEY_TILE):
        place = start + torch.arange(KEY_TILE, device=q.device)
        seen = (place >= first) & (place <= last)
        keys, values = _tile(kv, tables, place, ends, wide)
        scores = (query @ keys.transpose(2, 3)).masked_fill(~seen, float("-inf"))
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        base = new_peak.masked_fill(new_peak == float("-inf"), 0.0)  # nothing seen yet
        weights, shrink = (scores - base).exp(), (peak - base).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        acc = acc * shrink + weights @ values
        peak = new_peak
    result = (acc / total)[:, :, : c * group].view(n, kv_heads, c, group, head_dim)
    return result.permute(0, 2, 1, 3, 4).reshape(q.shape).to(q.dtype)


def _tile(kv: Tensor, tables: Tensor, place: Tensor, ends: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [n, Hkv, KEY_TILE, D] at positions `place`; zeros past each sequence's end [n], where slots hold anything."""
    block_size = kv.shape[2]
    inside = place <= ends[:, None]
    blocks = tables.gather(1, (place // block_size).where(inside, 0)).long()
    tile = kv[:, blocks, place % block_size]
    keys, values = tile.masked_fill(~inside[:, :, None, None], 0).to(dtype).transpose(2, 3)
    return keys, values


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
