"""Paged attention kernels. Shapes and names: quire.ops.paged_attention; flash attention: arXiv:2205.14135, split keys: arXiv:2311.01282.

GROUP query heads share one key head. A tile holds BLOCK_M rows; row r is query r // GROUP, head r % GROUP, so that keys are read
once for a whole group. Keys come in tiles of BLOCK_N at absolute positions. Scores are in units of log2 (scale holds log2 e).
"""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous

# A step's small inputs lie packed in one buffer, now here, now there: kernels must not be compiled anew for each alignment.
STEP_INPUTS = ["table_ptr", "start_ptr", "len_ptr"]


@triton.jit
def _attend(
    acc, peak, total, q, position, begin, end, k_ptr, v_ptr, table_ptr, scale, stride_block, stride_slot,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys [begin, end) of one sequence; row i sees keys up to position[i], WINDOW of them at most.

    MASKED=False: every row sees every key of the interval, whose length is a multiple of BLOCK_N.
    """
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_SIZE
    for start in range(begin, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        if MASKED:
            # Slots past the end may hold anything, NaN too, and 0 * NaN is NaN: they are not even loaded.
            present = key < end
            block = tl.load(table_ptr + key // BLOCK_SIZE, mask=present, other=0).to(tl.int64)
            offset = block * stride_block + (key % BLOCK_SIZE) * stride_slot
            k = tl.load(k_ptr + offset[None, :] + column[:, None], mask=present[None, :] & in_head[:, None], other=0.0)
            v = tl.load(v_ptr + offset[:, None] + column[None, :], mask=present[:, None] & in_head[None, :], other=0.0)
        else:
            block = tl.load(table_ptr + key // BLOCK_SIZE).to(tl.int64)
            offset = block * stride_block + (key % BLOCK_SIZE) * stride_slot
            if HEAD_SIZE == BLOCK_D:
                k = tl.load(k_ptr + offset[None, :] + column[:, None])
                v = tl.load(v_ptr + offset[:, None] + column[None, :])
            else:
                k = tl.load(k_ptr + offset[None, :] + column[:, None], mask=in_head[:, None], other=0.0)
                v = tl.load(v_ptr + offset[:, None] + column[None, :], mask=in_head[None, :], other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION) * scale
        if MASKED:
            seen = present[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                seen = seen & (key[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        if WINDOW > 0:
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a row whose window starts after this tile
        else:
            base = new_peak
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


@triton.jit
def _first_key(position, WINDOW: tl.constexpr):
    """First key that the query at `position` sees."""
    if WINDOW > 0:
        return tl.maximum(position + 1 - WINDOW, 0)
    else:
        return position * 0


@triton.jit
def _splits(seq_len, WINDOW: tl.constexpr, SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """(base, split, count): split i of a decoding row is keys [base + i * split, base + (i + 1) * split).

    It depends on the row's own length, and never on those of its batch mates: SPLIT_KEYS keys a split, or the least multiple of it
    that needs no more than MAX_SPLITS splits.
    """
    base = _first_key(seq_len - 1, WINDOW) // SPLIT_KEYS * SPLIT_KEYS
    split = tl.cdiv(seq_len - base, SPLIT_KEYS * MAX_SPLITS) * SPLIT_KEYS
    return base, split, tl.cdiv(seq_len - base, split)


@triton.jit(do_not_specialize=["stride_table", "max_splits"], do_not_specialize_on_alignment=STEP_INPUTS)
def decode_kernel(
    q_ptr, kv_ptr, table_ptr, start_ptr, len_ptr, out_ptr, partial_ptr, lse_ptr, scale,
    stride_q_token, stride_q_head, stride_values, stride_block, stride_slot, stride_head, stride_table, max_splits,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr, PRECISION: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rows with one query. Grid (kv heads, programs, B): program p takes splits p, p + programs, ...

    A row of one split goes to `out` [T, heads, D]; of more, to `partial` [B, heads, max_splits, D] and `lse` [B, heads, max_splits].
    """
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    head, program, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(start_ptr + row)
    seq_len = tl.load(len_ptr + row)
    if tl.load(start_ptr + row + 1) - token != 1:
        return
    member = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    mask = (member < GROUP)[:, None] & (column < HEAD_SIZE)[None, :]
    heads = head * GROUP + member
    out_place = out_ptr + (token.to(tl.int64) * NUM_HEADS + heads[:, None]) * HEAD_SIZE + column[None, :]
    if seq_len == 0:
        if program == 0:
            tl.store(out_place, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=mask)
        return
    base, split, count = _splits(seq_len, WINDOW, SPLIT_KEYS, MAX_SPLITS)
    if program >= count:
        return
    q_place = q_ptr + token.to(tl.int64) * stride_q_token + heads[:, None] * stride_q_head + column[None, :]
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


@triton.jit(do_not_specialize=["max_splits"], do_not_specialize_on_alignment=STEP_INPUTS)
def combine_kernel(
    start_ptr, len_ptr, partial_ptr, lse_ptr, out_ptr, max_splits,
    NUM_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, WINDOW: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr, HEADS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Weighs the splits of one row by their share of the softmax. Grid (heads / HEADS, B): a program takes HEADS heads in turn, since
    among many rows most have one split and nothing to do here."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    first_head, row = tl.program_id(0) * HEADS, tl.program_id(1)
    token = tl.load(start_ptr + row)
    seq_len = tl.load(len_ptr + row)
    if tl.load(start_ptr + row + 1) - token != 1 or seq_len == 0:
        return
    _, _, count = _splits(seq_len, WINDOW, SPLIT_KEYS, MAX_SPLITS)
    if count == 1:
        return
    split = tl.arange(0, MAX_SPLITS)
    column = tl.arange(0, BLOCK_D)
    mask = (split < count)[:, None] & (column < HEAD_SIZE)[None, :]
    for head in range(first_head, first_head + HEADS):
        place = (row.to(tl.int64) * NUM_HEADS + head) * max_splits + split
        lse = tl.load(lse_ptr + place, mask=split < count, other=float("-inf"))
        weight = tl.exp2(lse - tl.max(lse, axis=0))
        partial = tl.load(partial_ptr + place[:, None] * HEAD_SIZE + column[None, :], mask=mask, other=0.0)
        out = tl.sum(partial * weight[:, None], axis=0) / tl.sum(weight, axis=0)
        out_place = out_ptr + (token.to(tl.int64) * NUM_HEADS + head) * HEAD_SIZE + column
        tl.store(out_place, out.to(out_ptr.dtype.element_ty), mask=column < HEAD_SIZE)


@triton.jit
def _find_sequence(start_ptr, tile, num_sequences, QUERIES: tl.constexpr):
    """Sequence that owns `tile`: sequence b has tiles from query_start_loc[b] // QUERIES + b on, which is always enough."""
    low = 0
    high = num_sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(start_ptr + middle) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit(do_not_specialize=["num_sequences", "stride_table"], do_not_specialize_on_alignment=STEP_INPUTS)
def prefill_kernel(
    q_ptr, kv_ptr, table_ptr, start_ptr, len_ptr, out_ptr, num_sequences, scale,
    stride_q_token, stride_q_head, stride_values, stride_block, stride_slot, stride_head, stride_table,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows with two queries or more. Grid (tiles, kv heads); a tile is BLOCK_M // GROUP queries of one sequence, last tiles first."""
    queries: tl.constexpr = BLOCK_M // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # late queries see the most keys: they start first
    head = tl.program_id(1)
    row = _find_sequence(start_ptr, tile, num_sequences, queries)
    start = tl.load(start_ptr + row)
    num_queries = tl.load(start_ptr + row + 1) - start
    seq_len = tl.load(len_ptr + row)
    first_query = (tile - (start // queries + row)) * queries
    if num_queries <= 1 or first_query >= num_queries or seq_len == 0:
        return
    member = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    query = first_query + member // GROUP
    heads = head * GROUP + member % GROUP
    mask = ((member < queries * GROUP) & (query < num_queries))[:, None] & (column < HEAD_SIZE)[None, :]
    token = (start + query).to(tl.int64)
    q_place = q_ptr + token[:, None] * stride_q_token + heads[:, None] * stride_q_head + column[None, :]
    q = tl.load(q_place, mask=mask, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    context = seq_len - num_queries  # keys from earlier steps
    position = context + query
    end = context + tl.minimum(first_query + queries, num_queries)
    begin = _first_key(context + first_query, WINDOW) // BLOCK_N * BLOCK_N
    k_head = kv_ptr + head * stride_head
    v_head = k_head + stride_values
    table = table_ptr + row.to(tl.int64) * stride_table
    if WINDOW == 0:
        whole = (context + first_query + 1) // BLOCK_N * BLOCK_N  # keys that every query of the tile sees
        acc, peak, total = _attend(
            acc, peak, total, q, position, begin, whole, k_head, v_head, table, scale, stride_block, stride_slot,
            False, WINDOW, BLOCK_N, BLOCK_SIZE, HEAD_SIZE, BLOCK_D, PRECISION,
        )  # fmt: skip
        begin = whole
    acc, peak, total = _attend(
        acc, peak, total, q, position, begin, end, k_head, v_head, table, scale, stride_block, stride_slot,
        True, WINDOW, BLOCK_N, BLOCK_SIZE, HEAD_SIZE, BLOCK_D, PRECISION,
    )  # fmt: skip
    out_place = out_ptr + (token[:, None] * NUM_HEADS + heads[:, None]) * HEAD_SIZE + column[None, :]
    tl.store(out_place, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
