"""What a decoding step does beside the model: where tokens go, which is the likeliest, and how rows move on."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous


@triton.jit(do_not_specialize=["num_rows", "stride_table"])
def place_tokens_kernel(
    position_ptr, limit_ptr, failed_ptr, table_ptr, slot_ptr, len_ptr, num_rows, stride_table,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row a lane."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = row < num_rows
    position = tl.load(position_ptr + row, mask=present, other=0)
    limit = tl.load(limit_ptr + row, mask=present, other=0)
    failed = tl.load(failed_ptr + row, mask=present, other=0)
    active = present & (position < limit) & (failed == 0)
    block = tl.load(table_ptr + row.to(tl.int64) * stride_table + position // BLOCK_SIZE, mask=active, other=0)
    slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(slot_ptr + row, tl.where(active, slot, -1), mask=present)
    tl.store(len_ptr + row, tl.where(active, position + 1, 0).to(tl.int32), mask=present)


@triton.jit(do_not_specialize=["num_rows", "stride_tokens"])
def take_tokens_kernel(
    id_ptr, len_ptr, input_ptr, position_ptr, failed_ptr, token_ptr, step_ptr, num_rows, stride_tokens,
    RESTED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program for all rows, so that the step counter is read before it is written."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    step = tl.load(step_ptr)
    for first in range(0, num_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        present = row < num_rows
        id = tl.load(id_ptr + row, mask=present, other=0)
        active = present & (tl.load(len_ptr + row, mask=present, other=0) > 0)
        good = active & (id >= 0)
        tl.store(token_ptr + step * stride_tokens + row, tl.where(active, id, RESTED).to(tl.int32), mask=present)
        tl.store(input_ptr + row, id, mask=good)
        position = tl.load(position_ptr + row, mask=good, other=0)
        tl.store(position_ptr + row, position + 1, mask=good)
        tl.store(failed_ptr + row, tl.full([BLOCK], 1, tl.int64), mask=active & (id < 0))
    tl.debug_barrier()
    tl.store(step_ptr, step + 1)


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
def greedy_parts_kernel(
    logit_ptr, value_ptr, size, stride_row, num_parts, TILES: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    """The largest value of one part of a row, TILES * BLOCK logits. Grid (parts, rows). A part that is not finite gives NaN."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    nothing = tl.zeros([BLOCK], tl.float32)  # turns NaN where something is not finite
    for tile in tl.static_range(TILES):
        column = (part * TILES + tile) * BLOCK + lane
        inside = column < size
        value = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        nothing += value * 0.0
        best = tl.maximum(best, tl.where(inside, value, float("-inf")))
    tl.store(value_ptr + row * num_parts + part, tl.max(best, axis=0) + tl.sum(nothing, axis=0))


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
def greedy_merge_kernel(
    logit_ptr, value_ptr, out_ptr, size, stride_row, num_parts,
    PARTS: tl.constexpr, PART: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Index of the largest of a row: found in the first part that has it. -1 when a part is NaN. Grid (rows). PART: logits a part."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    value = tl.load(value_ptr + row * num_parts + part, mask=part < num_parts, other=float("-inf"))
    strange = tl.max((value != value).to(tl.int32), axis=0)
    largest = tl.max(value, axis=0)
    first_part = tl.min(tl.where(value == largest, part, PARTS), axis=0)
    column = first_part * PART + tl.arange(0, PART)
    logit = tl.load(logit_ptr + row * stride_row + column, mask=column < size, other=float("-inf")).to(tl.float32)
    best = tl.min(tl.where(logit == largest, column, size), axis=0)
    tl.store(out_ptr + row, tl.where(strange > 0, -1, best).to(tl.int64))


@triton.jit(do_not_specialize=["num_parts"])
def pick_kernel(value_ptr, column_ptr, out_ptr, num_parts, PARTS: tl.constexpr, DEPENDENT: tl.constexpr):
    """Column of the largest of a row's values, the lowest among equals; -1 when one is NaN. Grid (rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    place = row * num_parts + part
    value = tl.load(value_ptr + place, mask=part < num_parts, other=float("-inf"))
    column = tl.load(column_ptr + place, mask=part < num_parts, other=2147483647)
    strange = tl.max((value != value).to(tl.int32), axis=0)
    best = tl.min(tl.where(value == tl.max(value, axis=0), column, 2147483647), axis=0)
    tl.store(out_ptr + row, tl.where(strange > 0, -1, best).to(tl.int64))


@triton.jit
def _weights(logit, largest, temperature, inside, ONE: tl.constexpr):
    """Probabilities as whole numbers in float64, the likeliest ONE; the same as the reference's, rounding for rounding."""
    scaled = tl.math.div_rn(logit, temperature) - tl.math.div_rn(largest, temperature)
    weight = tl.exp(scaled.to(tl.float64)) * ONE
    whole = (weight + 4503599627370496.0) - 4503599627370496.0  # 2^52: rounds half to even
    return tl.where(inside, whole, 0.0)


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
def draw_parts_kernel(
    logit_ptr, value_ptr, sum_ptr, temperature_ptr, size, stride_row, num_parts,
    ONE: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sum of the weights of one part of a row that is drawn from. Grid (parts, rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    if temperature > 0:
        parts = tl.arange(0, PARTS)
        value = tl.load(value_ptr + row * num_parts + parts, mask=parts < num_parts, other=float("-inf"))
        largest = tl.max(value, axis=0)
        total = tl.zeros([BLOCK], tl.float64)
        for tile in tl.static_range(TILES):
            column = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            inside = column < size
            logit = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
            total += _weights(logit, largest, temperature, inside, ONE)
        tl.store(sum_ptr + row * num_parts + part, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts", "stride_step"])
def draw_merge_kernel(
    logit_ptr, value_ptr, sum_ptr, temperature_ptr, uniform_ptr, step_ptr, out_ptr,
    size, stride_row, num_parts, stride_step,
    ONE: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The token in whose share of its row's weights the uniform number falls; at temperature 0 the likeliest. Grid (rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    parts = tl.arange(0, PARTS)
    value = tl.load(value_ptr + row * num_parts + parts, mask=parts < num_parts, other=float("-inf"))
    strange = tl.max((value != value).to(tl.int32), axis=0)
    largest = tl.max(value, axis=0)
    if temperature > 0:
        sums = tl.load(sum_ptr + row * num_parts + parts, mask=parts < num_parts, other=0.0)
        total = tl.sum(sums, axis=0)
        uniform = tl.load(uniform_ptr + tl.load(step_ptr) * stride_step + row)
        target = tl.minimum(tl.floor(uniform * total), total - 1)
        passed = tl.cumsum(sums, axis=0) <= target
        part = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), num_parts - 1)
        before = tl.sum(tl.where(parts < part, sums, 0.0), axis=0)
        column = part * PART + tl.arange(0, PART)
        inside = column < size
        logit = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        weight = _weights(logit, largest, temperature, inside, ONE)
        best = part * PART + tl.sum(((before + tl.cumsum(weight, axis=0)) <= target).to(tl.int32), axis=0)
    else:
        part = tl.min(tl.where(value == largest, parts, PARTS), axis=0)
        column = part * PART + tl.arange(0, PART)
        logit = tl.load(logit_ptr + row * stride_row + column, mask=column < size, other=float("-inf")).to(tl.float32)
        best = tl.min(tl.where(logit == largest, column, size), axis=0)
    tl.store(out_ptr + row, tl.where(strange > 0, -1, best).to(tl.int64))


@triton.jit(do_not_specialize=["num_tokens", "stride_seen", "stride_count"])
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
