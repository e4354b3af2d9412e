"""Sampling with penalties and filters, and log-probabilities.

    survey   one pass over the logits: the largest value of every GROUP of them
    bound    since k groups have a value of at least the k-th largest of these, so have k tokens: those below it are not wanted
    gather   the tokens of at least the bound, from the few groups that have any: a shortlist a row
    choose   a token of the shortlist; score: log-probabilities

Weights of tokens are whole numbers (quire.ops.draw_tokens), so sums and thresholds are exact in any order. A row whose shortlist does
not tell goes through all its logits, as often as it takes.
"""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous

GROUP = tl.constexpr(256)
GROUPS_A_PART = tl.constexpr(16)
PART = tl.constexpr(4096)  # GROUP * GROUPS_A_PART
TILE = tl.constexpr(1024)  # of a part, where one program goes through many
SHORT = tl.constexpr(256)  # most tokens of a shortlist
CHUNK = tl.constexpr(16)  # of a shortlist, compared with all of it at once
MAX_SHORT_K = tl.constexpr(128)


@triton.jit
def _penalised(
    raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control, table_row,
    PENALISED: tl.constexpr,
):  # fmt: skip
    """Values after the penalties; rounded as the reference's, operation for operation."""
    value = raw
    if PENALISED:
        repetition = tl.load(control_ptr + 4 * stride_control + row).to(tl.float32)
        frequency = tl.load(control_ptr + 5 * stride_control + row).to(tl.float32)
        presence = tl.load(control_ptr + 6 * stride_control + row).to(tl.float32)
        word = tl.load(seen_ptr + table_row * stride_seen + column // 32, mask=inside, other=0)
        known = inside & (((word >> (column % 32)) & 1) != 0)
        count = tl.load(count_ptr + table_row * stride_count + column, mask=known, other=0)
        repeated = tl.where(raw > 0, tl.math.div_rn(raw, repetition), raw * repetition)
        value = tl.where(known, repeated, raw)
        # The product is rounded before it is subtracted: a fused operation would not.
        by_count = (frequency.to(tl.float64) * count.to(tl.float64)).to(tl.float32)
        value = value - by_count - tl.where(count > 0, presence, 0.0)
    return value


@triton.jit
def _weights(value, largest, temperature, inside, ONE: tl.constexpr):
    """Probabilities as whole numbers, the likeliest ONE; -1 where there is no token."""
    scaled = tl.math.div_rn(value, temperature) - tl.math.div_rn(largest, temperature)
    weight = tl.exp(scaled.to(tl.float64)) * ONE
    whole = (weight + 4503599627370496.0) - 4503599627370496.0  # 2^52: rounds half to even
    return tl.where(inside, whole.to(tl.int64), -1)


@triton.jit
def ordered(value):
    """fp32 as int32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _lower_bound(peaks, there, wanted):
    """A value that at least `wanted` of the peaks reach, and hardly more; -inf if there are fewer."""
    low = tl.min(tl.where(there, peaks, float("inf")), axis=0)
    high = tl.max(peaks, axis=0)
    enough = tl.sum(there.to(tl.int32), axis=0) >= wanted
    for _ in range(14):
        middle = 0.5 * low + 0.5 * high
        reached = tl.sum((there & (peaks >= middle)).to(tl.int32), axis=0) >= wanted
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return tl.where(enough, low, float("-inf"))


@triton.jit(
    do_not_specialize=["stride_control"],
    do_not_specialize_on_alignment=["control_ptr", "row_ptr"],
)
def survey_kernel(
    logit_ptr, largest_ptr, raw_largest_ptr, sum_ptr, found_ptr, seen_ptr, count_ptr, control_ptr, row_ptr,
    size, stride_row, num_parts, stride_seen, stride_count, stride_control,
    PENALISED: tl.constexpr, SCORED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of each group of a part: the largest value, and the largest raw logit; of the part the sum of exp(raw - its largest).
    Grid (parts, rows). A part that is not finite gives NaN. Lists are empty now."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = part * PART + tl.arange(0, PART)
    inside = column < size
    raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
    nothing = tl.sum(raw * 0.0, axis=0)  # NaN where something is not finite
    table_row = tl.load(row_ptr + row)
    value = _penalised(
        raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control, table_row,
        PENALISED,
    )  # fmt: skip
    place = (row * num_parts + part) * GROUPS_A_PART + tl.arange(0, GROUPS_A_PART)
    value = tl.where(inside, value, float("-inf"))
    groups = tl.max(tl.reshape(value, [GROUPS_A_PART, GROUP]), axis=1)
    tl.store(largest_ptr + place, groups + nothing)
    tl.store(found_ptr + row * 2 + tl.arange(0, 2), tl.zeros([2], tl.int32), mask=part == 0)
    if SCORED:
        raw = tl.where(inside, raw, float("-inf"))
        if PENALISED:
            groups = tl.max(tl.reshape(raw, [GROUPS_A_PART, GROUP]), axis=1)
            tl.store(raw_largest_ptr + place, groups)
        peak = tl.max(groups, axis=0)
        tl.store(sum_ptr + row * num_parts + part, tl.sum(tl.exp(raw - peak), axis=0))


@triton.jit(
    do_not_specialize=["stride_control"],
    do_not_specialize_on_alignment=["control_ptr", "row_ptr"],
)
def weigh_kernel(
    logit_ptr, largest_ptr, weight_ptr, seen_ptr, count_ptr, control_ptr, row_ptr,
    size, stride_row, num_parts, stride_seen, stride_count, stride_control,
    ONE: tl.constexpr, GROUPS: tl.constexpr, PENALISED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sum of the weights of one part of a row whose top_k leaves too many tokens for a shortlist. Grid (parts, rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(control_ptr + row).to(tl.float32)
    top_k = tl.load(control_ptr + stride_control + row)
    if (temperature > 0) & ((top_k <= 0) | (top_k > MAX_SHORT_K)):
        group = tl.arange(0, GROUPS)
        num_groups = num_parts * GROUPS_A_PART
        largest = tl.max(
            tl.load(largest_ptr + row * num_groups + group, mask=group < num_groups, other=float("-inf")), axis=0
        )
        column = part * PART + tl.arange(0, PART)
        inside = column < size
        raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        value = _penalised(
            raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
            tl.load(row_ptr + row), PENALISED,
        )  # fmt: skip
        weight = _weights(value, largest, temperature, inside, ONE)
        tl.store(weight_ptr + row * num_parts + part, tl.sum(tl.maximum(weight, 0), axis=0))


@triton.jit
def _tail(
    logit_ptr, row, table_row, largest, temperature, least, size, stride_row,
    seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
    ONE: tl.constexpr, PENALISED: tl.constexpr,
):  # fmt: skip
    """How many tokens of the whole row have a weight of at least `least`, and the sum of these."""
    count = tl.full([], 0, tl.int64)
    total = tl.full([], 0, tl.int64)
    for first in range(0, size, TILE):
        column = first + tl.arange(0, TILE)
        inside = column < size
        raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        value = _penalised(
            raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
            table_row, PENALISED,
        )  # fmt: skip
        weight = _weights(value, largest, temperature, inside, ONE)
        kept = weight >= least
        count += tl.sum(kept.to(tl.int64), axis=0)
        total += tl.sum(tl.where(kept, weight, 0), axis=0)
    return count, total


@triton.jit(
    do_not_specialize=["stride_control"],
    do_not_specialize_on_alignment=["control_ptr"],
)
def bound_kernel(
    largest_ptr, raw_largest_ptr, control_ptr, bound_ptr, size, num_parts, stride_control,
    ONE: tl.constexpr, ZERO: tl.constexpr, GROUPS: tl.constexpr, WANTED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of each row the least value, and the least raw logit, of a shortlist; inf = none is needed. WANTED: raw logits; 0 = none.
    Grid (rows). ZERO: log of less than the share of ONE that is rounded to 0."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    num_groups = num_parts * GROUPS_A_PART
    group = tl.arange(0, GROUPS)
    there = group * GROUP < size
    temperature = tl.load(control_ptr + row).to(tl.float32)
    bound = tl.full([], float("inf"), tl.float64)
    top_k = tl.load(control_ptr + stride_control + row).to(tl.int64)
    limited = (top_k > 0) & (top_k < size)
    top_p = tl.load(control_ptr + 2 * stride_control + row)
    min_p = tl.load(control_ptr + 3 * stride_control + row)
    if (temperature > 0) & (limited | (top_p < 1.0) | (min_p > 0.0)):
        peaks = tl.load(largest_ptr + row * num_groups + group, mask=there, other=float("-inf"))
        half = tl.maximum(
            size // (2 * GROUP), 1
        )  # of the groups; with all of them the bound would be that of the least likely
        wanted = tl.where(limited, tl.minimum(top_k, MAX_SHORT_K), tl.minimum(half, MAX_SHORT_K))
        # Every token that weighs as much as the k-th is in the list: their values differ by less than 2 T / weight.
        low = _lower_bound(peaks, there, wanted).to(tl.float64)
        largest = tl.max(peaks, axis=0).to(tl.float64)
        t = temperature.to(tl.float64)
        weight = tl.exp((low - largest) / t) * ONE
        slack = 1e-6 * (tl.abs(low) + tl.abs(largest))
        near = tl.where(weight > 0, low - 2 * t / tl.maximum(weight, 1e-300) - slack, float("-inf"))
        bound = tl.maximum(near, largest + t * ZERO)
    tl.store(bound_ptr + row * 2, bound)
    if WANTED > 0:
        raw_peaks = tl.load(raw_largest_ptr + row * num_groups + group, mask=there, other=float("-inf"))
        tl.store(bound_ptr + row * 2 + 1, _lower_bound(raw_peaks, there, WANTED).to(tl.float64))


@triton.jit
def _append(found_ptr, value_ptr, id_ptr, place, value, column, kept):
    """Puts tokens at the end of list number `place`; those beyond SHORT are counted and left out."""
    slot = tl.atomic_add(found_ptr + place + tl.zeros_like(column), tl.full(column.shape, 1, tl.int32), mask=kept)
    kept = kept & (slot < SHORT)
    tl.store(value_ptr + place * SHORT + slot, value, mask=kept)
    tl.store(id_ptr + place * SHORT + slot, column, mask=kept)


@triton.jit(
    do_not_specialize=["stride_control"],
    do_not_specialize_on_alignment=["control_ptr", "row_ptr"],
)
def gather_kernel(
    logit_ptr, largest_ptr, raw_largest_ptr, bound_ptr, found_ptr, value_ptr, id_ptr, seen_ptr, count_ptr, control_ptr, row_ptr,
    size, stride_row, num_parts, stride_seen, stride_count, stride_control,
    PENALISED: tl.constexpr, SCORED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Lists the tokens of at least the bound, in any order: list 2 * row of values, list 2 * row + 1 of raw logits.
    Grid (parts, rows)."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = (row * num_parts + part) * GROUPS_A_PART + tl.arange(0, GROUPS_A_PART)
    bound = tl.load(bound_ptr + row * 2)
    wanted = tl.load(largest_ptr + place).to(tl.float64) >= bound
    any_wanted = tl.max(wanted.to(tl.int32), axis=0)
    column = part * PART + tl.arange(0, PART)
    if any_wanted > 0:
        inside = tl.reshape(wanted[:, None] & (tl.arange(0, GROUP)[None, :] >= 0), [PART]) & (column < size)
        raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        value = _penalised(
            raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
            tl.load(row_ptr + row), PENALISED,
        )  # fmt: skip
        _append(found_ptr, value_ptr, id_ptr, row * 2, value, column, inside & (value.to(tl.float64) >= bound))
    if SCORED:
        raw_bound = tl.load(bound_ptr + row * 2 + 1)
        raw_wanted = tl.load(raw_largest_ptr + place).to(tl.float64) >= raw_bound
        any_raw = tl.max(raw_wanted.to(tl.int32), axis=0)
        if any_raw > 0:
            raw_inside = tl.reshape(raw_wanted[:, None] & (tl.arange(0, GROUP)[None, :] >= 0), [PART]) & (column < size)
            raw_again = tl.load(logit_ptr + row * stride_row + column, mask=raw_inside, other=0.0).to(tl.float32)
            _append(
                found_ptr, value_ptr, id_ptr, row * 2 + 1, raw_again, column,
                raw_inside & (raw_again.to(tl.float64) >= raw_bound),
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["stride_step", "stride_control"],
    do_not_specialize_on_alignment=["control_ptr", "row_ptr", "uniform_ptr"],
)
def choose_kernel(
    logit_ptr, largest_ptr, weight_ptr, bound_ptr, found_ptr, value_ptr, id_ptr, seen_ptr, count_ptr, control_ptr, row_ptr,
    uniform_ptr, step_ptr, out_ptr, size, stride_row, num_parts, stride_step, stride_seen, stride_count, stride_control,
    ONE: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
    WEIGH_ALL: tl.constexpr, PENALISED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The token of each row. Grid (rows). BITS: bits of ONE."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    table_row = tl.load(row_ptr + row)
    num_groups = num_parts * GROUPS_A_PART
    group = tl.arange(0, GROUPS)
    peaks = tl.load(largest_ptr + row * num_groups + group, mask=group < num_groups, other=float("-inf"))
    strange = tl.max((peaks != peaks).to(tl.int32), axis=0)
    largest = tl.max(peaks, axis=0)
    temperature = tl.load(control_ptr + row).to(tl.float32)
    best = tl.full([], -1, tl.int64)
    if (temperature > 0) & (strange == 0):
        top_k = tl.load(control_ptr + stride_control + row).to(tl.int64)
        top_p = tl.load(control_ptr + 2 * stride_control + row)
        min_p = tl.load(control_ptr + 3 * stride_control + row)
        uniform = tl.load(uniform_ptr + tl.load(step_ptr) * stride_step + row)
        limited = (top_k > 0) & (top_k < size)
        plain = (not limited) & (top_p >= 1.0) & (min_p <= 0.0)
        total = tl.full([], 0, tl.int64)
        part = tl.arange(0, PARTS)
        sums = tl.zeros([PARTS], tl.int64)
        if WEIGH_ALL & ((top_k <= 0) | (top_k > MAX_SHORT_K)):
            sums = tl.load(weight_ptr + row * num_parts + part, mask=part < num_parts, other=0)
            total = tl.sum(sums, axis=0)
        threshold = tl.full([], 0, tl.int64)
        told = plain
        min_weight = tl.ceil(min_p * ONE).to(tl.int64)
        if not plain:
            count = tl.load(found_ptr + row * 2)
            first_of_list = row * 2 * SHORT
            lane, chunk = tl.arange(0, SHORT), tl.arange(0, CHUNK)
            inside = lane < count
            value = tl.load(value_ptr + first_of_list + lane, mask=inside, other=float("-inf"))
            ids = tl.load(id_ptr + first_of_list + lane, mask=inside, other=2147483647)
            weight = _weights(tl.where(inside, value, largest), largest, temperature, inside, ONE)
            # How many are larger than each, and what those weigh that are not smaller.
            num_larger = tl.zeros([SHORT], tl.int32)
            heavier = tl.zeros([SHORT], tl.int64)
            for first in range(0, tl.minimum(count, SHORT), CHUNK):
                other = tl.load(
                    value_ptr + first_of_list + first + chunk, mask=first + chunk < count, other=float("-inf")
                )
                present = first + chunk < count
                others = tl.maximum(_weights(tl.where(present, other, largest), largest, temperature, present, ONE), 0)
                num_larger += tl.sum((other[None, :] > value[:, None]).to(tl.int32), axis=1)
                heavier += tl.sum(tl.where(other[None, :] >= value[:, None], others[None, :], 0), axis=1)
            least = min_weight
            if limited:
                within = inside & (num_larger < top_k)
                least = tl.maximum(least, tl.min(tl.where(within, weight, 9223372036854775807), axis=0))
            threshold = least
            if top_p < 1.0:
                mass = tl.where(least > 0, tl.sum(tl.where(weight >= least, tl.maximum(weight, 0), 0), axis=0), total)
                wide_mass = mass.to(tl.float64)
                needed = tl.minimum(tl.ceil(top_p * wide_mass), wide_mass).to(tl.int64)
                by_p = tl.max(tl.where(inside & (heavier >= needed), weight, 0), axis=0)
                threshold = tl.maximum(least, by_p)
            # Is everything in the list that the thresholds were found among?
            bound = tl.load(bound_ptr + row * 2)
            t = temperature.to(tl.float64)
            heaviest_outside = tl.exp((bound - largest.to(tl.float64)) / t) * ONE + 2
            whole = bound <= largest.to(tl.float64) + t * ZERO
            told = (count <= SHORT) & (whole | (threshold.to(tl.float64) >= heaviest_outside))
            told = told & (whole | (not limited) | (count >= top_k)) & (whole | (least > 0) | (threshold > 0))
            if told:
                kept = tl.where(inside & (weight >= threshold), weight, 0)
                kept_total = tl.sum(kept, axis=0).to(tl.float64)
                target = tl.minimum(tl.floor(uniform * kept_total), kept_total - 1).to(tl.int64)
                passed = tl.zeros([SHORT], tl.int64)  # the weight of tokens up to each, in order of id
                for first in range(0, count, CHUNK):
                    present = first + chunk < count
                    other = tl.load(value_ptr + first_of_list + first + chunk, mask=present, other=float("-inf"))
                    other_ids = tl.load(id_ptr + first_of_list + first + chunk, mask=present, other=2147483647)
                    others = _weights(tl.where(present, other, largest), largest, temperature, present, ONE)
                    others = tl.where(others >= threshold, others, 0)
                    passed += tl.sum(tl.where(other_ids[None, :] <= ids[:, None], others[None, :], 0), axis=1)
                best = tl.min(tl.where((kept > 0) & (passed > target), ids, 2147483647), axis=0).to(tl.int64)
        if (not told) | plain:
            if not told:
                kth = tl.full([], 0, tl.int64)
                by_p = tl.full([], 0, tl.int64)
                least = min_weight
                needed = tl.full([], 0, tl.int64)
                # Bit by bit: the weight of the k-th, the mass, the weight that top_p ends at, what is kept.
                stage = tl.where(limited, 0, BITS)
                while stage < 2 * BITS + 2:
                    one = tl.full([], 1, tl.int64)
                    in_k, in_p = stage < BITS, (stage > BITS) & (stage <= 2 * BITS)
                    bit = tl.where(in_k, BITS - 1 - stage, tl.where(in_p, 2 * BITS - stage, 0)).to(tl.int64)
                    least = tl.maximum(min_weight, kth)
                    threshold = tl.maximum(least, by_p)
                    asked = tl.where(in_k, kth | (one << bit), tl.where(in_p, by_p | (one << bit), threshold))
                    tail_count, tail = _tail(
                        logit_ptr, row, table_row, largest, temperature, asked, size, stride_row, seen_ptr, count_ptr,
                        control_ptr, stride_seen, stride_count, stride_control, ONE, PENALISED,
                    )  # fmt: skip
                    kth = tl.where(in_k & (tail_count >= top_k), asked, kth)
                    by_p = tl.where(in_p & (tail >= needed), asked, by_p)
                    wide_mass = tail.to(tl.float64)
                    needed = tl.where(
                        stage == BITS, tl.minimum(tl.ceil(top_p * wide_mass), wide_mass).to(tl.int64), needed
                    )
                    total = tail
                    stage = tl.where((stage == BITS) & (top_p >= 1.0), 2 * BITS + 1, stage + 1)
            wide_total = total.to(tl.float64)
            target = tl.minimum(tl.floor(uniform * wide_total), wide_total - 1).to(tl.int64)
            before = tl.full([], 0, tl.int64)
            first = tl.full([], 0, tl.int32)
            if told:
                earlier = tl.cumsum(sums, axis=0) <= target
                which = tl.minimum(tl.sum(earlier.to(tl.int32), axis=0), num_parts - 1)
                before = tl.sum(tl.where(part < which, sums, 0), axis=0)
                first = which * PART
            going = tl.full([], 1, tl.int32)
            while going > 0:
                column = first + tl.arange(0, TILE)
                there = column < size
                raw = tl.load(logit_ptr + row * stride_row + column, mask=there, other=0.0).to(tl.float32)
                all_values = _penalised(
                    raw, column, there, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
                    table_row, PENALISED,
                )  # fmt: skip
                all_weights = _weights(all_values, largest, temperature, there, ONE)
                kept_tile = tl.where(there & (all_weights >= threshold), all_weights, 0)
                sum_tile = tl.sum(kept_tile, axis=0)
                if (before + sum_tile > target) | (first + TILE >= size):
                    passed_tokens = tl.sum(((before + tl.cumsum(kept_tile, axis=0)) <= target).to(tl.int32), axis=0)
                    best = (first + passed_tokens).to(tl.int64)
                    going = tl.full([], 0, tl.int32)
                else:
                    before += sum_tile
                    first += TILE
    else:
        first_group = tl.min(tl.where(peaks == largest, group, GROUPS), axis=0)
        column = first_group * GROUP + tl.arange(0, GROUP)
        there = column < size
        raw = tl.load(logit_ptr + row * stride_row + column, mask=there, other=0.0).to(tl.float32)
        group_values = _penalised(
            raw, column, there, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control, table_row,
            PENALISED,
        )  # fmt: skip
        best = tl.min(tl.where(there & (group_values == largest), column, size), axis=0).to(tl.int64)
    tl.store(out_ptr + row, tl.where(strange > 0, -1, best))
