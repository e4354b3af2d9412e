"""Attention of rows with one query, keys split among programs. Shapes and names: _kernels_attention.py; split keys: arXiv:2311.01282.

The last program of a row that has done its splits weighs them all, in order.
"""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous
from quire.backends.triton._kernels_attention import STEP_INPUTS, _attend, _first_key


@triton.jit
def _splits(seq_len, WINDOW: tl.constexpr, SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """(base, split, count): split i of a decoding row is keys [base + i * split, base + (i + 1) * split).

    It depends on the row's own length, and never on those of its batch mates: SPLIT_KEYS keys a split, or the least multiple of it
    that needs no more than MAX_SPLITS splits.
    """
    base = _first_key(seq_len - 1, WINDOW) // SPLIT_KEYS * SPLIT_KEYS
    split = tl.cdiv(seq_len - base, SPLIT_KEYS * MAX_SPLITS) * SPLIT_KEYS
    return base, split, tl.cdiv(seq_len - base, split)


@triton.jit
def _weigh_splits(
    partial_ptr, lse_ptr, place, out_place, count, member, column, mask,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the sum of a row's splits, each by its share of the softmax; `place` [BLOCK_M] of each head's first split."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for i in range(0, count):
        # Past the first-level cache, which may hold what lay here before.
        lse = tl.load(lse_ptr + place + i, mask=member < GROUP, other=0.0, cache_modifier=".cg")
        part = tl.load(
            partial_ptr + (place + i)[:, None] * HEAD_SIZE + column[None, :], mask=mask, other=0.0, cache_modifier=".cg"
        )
        new_peak = tl.maximum(peak, lse)
        weight, shrink = tl.exp2(lse - new_peak), tl.exp2(peak - new_peak)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        peak = new_peak
    tl.store(out_place, (acc / total[:, None]).to(out_place.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["stride_table", "max_splits"], do_not_specialize_on_alignment=STEP_INPUTS)
def decode_kernel(
    q_ptr, kv_ptr, table_ptr, start_ptr, len_ptr, out_ptr, partial_ptr, lse_ptr, arrived_ptr, scale,
    stride_q_token, stride_q_head, stride_values, stride_block, stride_slot, stride_head, stride_table, max_splits,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr, PRECISION: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (kv heads, programs, B): program p takes splits p, p + programs, ... Rows with another number of queries are passed over.

    A row of one split goes to `out` [T, heads, D] at once; of more, to `partial` [B, heads, max_splits, D] and
    `lse` [B, heads, max_splits] first. `arrived` [B, kv heads] counts splits done; it is zero before and after.
    """
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    head, program, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(start_ptr + row)
    seq_len = tl.load(len_ptr + row)
    if tl.load(start_ptr + row + 1) - token != 1:
        return
    token = token.to(tl.int64)
    member = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    mask = (member < GROUP)[:, None] & (column < HEAD_SIZE)[None, :]
    heads = head * GROUP + member
    out_place = out_ptr + (token * NUM_HEADS + heads[:, None]) * HEAD_SIZE + column[None, :]
    if seq_len == 0:
        if program == 0:
            tl.store(out_place, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=mask)
        return
    base, split, count = _splits(seq_len, WINDOW, SPLIT_KEYS, MAX_SPLITS)
    if program >= count:
        return
    q_place = q_ptr + token * stride_q_token + heads[:, None] * stride_q_head + column[None, :]
    q = tl.load(q_place, mask=mask, other=0.0)
    position = tl.zeros([BLOCK_M], tl.int32) + (seq_len - 1)
    k_head = kv_ptr + head * stride_head
    first_tile = _first_key(seq_len - 1, WINDOW) // BLOCK_N * BLOCK_N
    table = table_ptr + row.to(tl.int64) * stride_table
    for i in range(program, count, tl.num_programs(1)):
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        begin = tl.maximum(base + i * split, first_tile)
        end = tl.minimum(base + (i + 1) * split, seq_len)
        if WINDOW == 0:
            whole = end // BLOCK_N * BLOCK_N
            acc, peak, total = _attend(
                acc, peak, total, q, position, begin, whole, k_head, k_head + stride_values, table, scale,
                stride_block, stride_slot, False, WINDOW, BLOCK_N, BLOCK_SIZE, HEAD_SIZE, BLOCK_D, PRECISION,
            )  # fmt: skip
            begin = whole
        acc, peak, total = _attend(
            acc, peak, total, q, position, begin, end, k_head, k_head + stride_values, table, scale,
            stride_block, stride_slot, True, WINDOW, BLOCK_N, BLOCK_SIZE, HEAD_SIZE, BLOCK_D, PRECISION,
        )  # fmt: skip
        result = acc / total[:, None]
        if count == 1:
            tl.store(out_place, result.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            place = (row.to(tl.int64) * NUM_HEADS + heads) * max_splits + i
            tl.store(lse_ptr + place, peak + tl.log2(total), mask=member < GROUP)
            tl.store(partial_ptr + place[:, None] * HEAD_SIZE + column[None, :], result, mask=mask)
    if count > 1:
        arrived = arrived_ptr + row * tl.num_programs(0) + head
        mine = (count - program + tl.num_programs(1) - 1) // tl.num_programs(1)
        tl.debug_barrier()  # all threads' stores lie before the count
        if tl.atomic_add(arrived, mine, sem="acq_rel") + mine == count:
            tl.debug_barrier()
            tl.store(arrived, 0)
            place = (row.to(tl.int64) * NUM_HEADS + heads) * max_splits
            _weigh_splits(
                partial_ptr, lse_ptr, place, out_place, count, member, column, mask, GROUP, HEAD_SIZE, BLOCK_M, BLOCK_D
            )
