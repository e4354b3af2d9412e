"""Paged attention kernels. Shapes and names: quire.ops.paged_attention; flash attention: arXiv:2205.14135, split keys: arXiv:2311.01282.

GROUP query heads share one key head. A tile holds BLOCK_M rows; row r is query r // GROUP, head r % GROUP, so that keys are read
once for a whole group. Keys come in tiles of BLOCK_N at absolute positions. Scores are in units of log2 (scale holds log2 e).
"""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

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
