"""Log-probabilities of the tokens chosen and of the likeliest, from the lists that _kernels_sample makes; counts of tokens."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous
from quire.backends.triton._kernels_sample import GROUPS_A_PART, PART, SHORT, TILE, ordered


@triton.jit
def score_kernel(
    logit_ptr, largest_ptr, sum_ptr, chosen_ptr, bound_ptr, found_ptr, value_ptr, id_ptr, rank_ptr, logprob_ptr, top_id_ptr,
    top_ptr, size, stride_row, num_parts,
    TOP: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rank and log-probability of each row's token, and the TOP likeliest, of raw logits. Grid (rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    num_groups = num_parts * GROUPS_A_PART
    group = tl.arange(0, GROUPS)
    peaks = tl.load(largest_ptr + row * num_groups + group, mask=group < num_groups, other=float("-inf"))
    part_peaks = tl.max(tl.reshape(peaks, [PARTS, GROUPS_A_PART]), axis=1)
    part = tl.arange(0, PARTS)
    sums = tl.load(sum_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
    largest = tl.max(peaks, axis=0)
    normaliser = largest + tl.log(tl.sum(sums * tl.exp(part_peaks - largest), axis=0))
    token = tl.maximum(tl.load(chosen_ptr + row), 0)
    chosen = tl.load(logit_ptr + row * stride_row + token).to(tl.float32)
    tl.store(logprob_ptr + row, chosen - normaliser)
    place = row * 2 + 1
    count = tl.load(found_ptr + place)
    listed = count <= SHORT
    lane = tl.arange(0, SHORT)
    value = tl.load(value_ptr + place * SHORT + lane, mask=lane < count, other=float("-inf"))
    rank = 1 + tl.sum((value > chosen).to(tl.int32), axis=0)
    if (not listed) | (chosen.to(tl.float64) < tl.load(bound_ptr + place)):
        rank = tl.full([], 1, tl.int32)
        for at in range(num_parts):
            if tl.max(tl.where(part == at, part_peaks, float("-inf")), axis=0) > chosen:
                column = at * PART + tl.arange(0, PART)
                raw = tl.load(logit_ptr + row * stride_row + column, mask=column < size, other=float("-inf")).to(
                    tl.float32
                )
                rank += tl.sum((raw > chosen).to(tl.int32), axis=0)
    tl.store(rank_ptr + row, rank)
    if TOP > 0:
        if not listed:  # many equal ones
            exact = _first_bound(logit_ptr, row, size, stride_row, TOP)
            count = _gather_exact(
                logit_ptr, value_ptr + place * SHORT, id_ptr + place * SHORT, row, exact, size, stride_row, TOP
            )
            value = tl.load(value_ptr + place * SHORT + lane, mask=lane < count, other=float("-inf"))
        ids = tl.load(id_ptr + place * SHORT + lane, mask=lane < count, other=2147483647)
        for i in range(TOP):
            most = tl.max(value, axis=0)
            first_id = tl.min(tl.where((value == most) & (lane < count), ids, 2147483647), axis=0)
            tl.store(top_id_ptr + row * TOP + i, first_id)
            tl.store(top_ptr + row * TOP + i, most - normaliser)
            value = tl.where(ids == first_id, float("-inf"), value)


@triton.jit
def _first_bound(logit_ptr, row, size, stride_row, k):
    """The k-th largest logit of the whole row."""
    low = tl.full([], -2139095041, tl.int64)
    high = tl.full([], 2139095040, tl.int64)
    for _ in range(33):
        middle = low + ((high - low + 1) >> 1)
        count = tl.full([], 0, tl.int32)
        for first in range(0, size, TILE):
            column = first + tl.arange(0, TILE)
            raw = tl.load(logit_ptr + row * stride_row + column, mask=column < size, other=float("-inf")).to(tl.float32)
            count += tl.sum((ordered(raw).to(tl.int64) >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle - 1)
    bits = low.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _gather_exact(logit_ptr, value_ptr, id_ptr, row, bound, size, stride_row, k):
    """Collects the logits above `bound`, and the first k that equal it."""
    found = tl.full([], 0, tl.int32)
    equal = tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        column = first + tl.arange(0, TILE)
        raw = tl.load(logit_ptr + row * stride_row + column, mask=column < size, other=float("-inf")).to(tl.float32)
        same = (raw == bound) & (column < size)
        kept = (raw > bound) | (same & (equal + tl.cumsum(same.to(tl.int32), axis=0) <= k))
        place = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(value_ptr + place, raw, mask=kept & (place < SHORT))
        tl.store(id_ptr + place, column, mask=kept & (place < SHORT))
        found += tl.sum(kept.to(tl.int32), axis=0)
        equal += tl.sum(same.to(tl.int32), axis=0)
    tl.debug_barrier()
    return found


@triton.jit(
    do_not_specialize=["num_tokens"],
    do_not_specialize_on_alignment=["id_ptr", "mark_ptr", "row_ptr"],
)
def count_tokens_kernel(
    id_ptr, mark_ptr, row_ptr, seen_ptr, count_ptr, num_tokens, stride_seen, stride_count,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One token a lane. Counts share 32-bit words in pairs, the even token's in the low half."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = place < num_tokens
    token = tl.load(id_ptr + place, mask=present, other=-1)
    mark = tl.load(mark_ptr + place, mask=present, other=0)
    row = tl.load(row_ptr + place, mask=present, other=0)
    good = (token >= 0) & (mark != 0)
    bit = tl.full([BLOCK], 1, tl.int32) << (token % 32).to(tl.int32)
    tl.atomic_or(seen_ptr + row * stride_seen + token // 32, bit, mask=good)
    cell = row * stride_count + token
    counted = good & (mark > 0)
    full = tl.load(count_ptr + cell, mask=counted, other=0) >= 32767
    word = count_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + cell // 2
    one = tl.full([BLOCK], 1, tl.int32) << (16 * (cell % 2)).to(tl.int32)
    tl.atomic_add(word, one, mask=counted & (full == 0))
