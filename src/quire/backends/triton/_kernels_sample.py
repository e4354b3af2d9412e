"""Sampling with penalties and filters, and log-probabilities.

One pass over the logits takes the largest value of every GROUP of them. Since k groups have a value of at least the k-th largest of
these, so have k tokens: the likeliest tokens all lie in few groups, which a program for each row goes through again. From then on it
has a shortlist. Weights of tokens are whole numbers (quire.ops.draw_tokens), so sums and thresholds are exact in any order. Rows for
which the shortlist does not tell go through all their logits, as often as it takes.
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
SHORT = tl.constexpr(1024)  # most tokens of a shortlist
MAX_SHORT_K = tl.constexpr(256)


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
def _ordered(value):
    """fp32 as int32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_value(value, k):
    """The k-th largest of fp32 values; -inf if there are fewer."""
    order = _ordered(value).to(tl.int64)
    low = tl.full([], -2139095041, tl.int64)  # of -inf
    high = tl.full([], 2139095040, tl.int64)  # of inf
    for _ in range(33):
        middle = low + ((high - low + 1) >> 1)
        enough = tl.sum((order >= middle).to(tl.int32), axis=0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    bits = low.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
def survey_kernel(
    logit_ptr, largest_ptr, raw_largest_ptr, sum_ptr, seen_ptr, count_ptr, control_ptr, row_ptr,
    size, stride_row, num_parts, stride_seen, stride_count, stride_control,
    PENALISED: tl.constexpr, SCORED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of each group of a part: the largest value, and the largest raw logit; of the part the sum of exp(raw - its largest).
    Grid (parts, rows). A part that is not finite gives NaN."""
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
    if SCORED:
        raw = tl.where(inside, raw, float("-inf"))
        if PENALISED:
            groups = tl.max(tl.reshape(raw, [GROUPS_A_PART, GROUP]), axis=1)
            tl.store(raw_largest_ptr + place, groups)
        peak = tl.max(groups, axis=0)
        tl.store(sum_ptr + row * num_parts + part, tl.sum(tl.exp(raw - peak), axis=0))


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
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


@triton.jit
def _gather(
    logit_ptr, group_ptr, value_ptr, id_ptr, row, table_row, chosen_groups, bound, size, stride_row, num_groups,
    seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
    GROUPS: tl.constexpr, PENALISED: tl.constexpr,
):  # fmt: skip
    """Collects the tokens of at least `bound` from the chosen groups [GROUPS] of a row, in order of id, and returns how many there
    are; those beyond SHORT are left out."""
    before = tl.cumsum(chosen_groups.to(tl.int32), axis=0) - 1
    tl.store(group_ptr + row * num_groups + before, tl.arange(0, GROUPS), mask=chosen_groups)
    count = tl.sum(chosen_groups.to(tl.int32), axis=0)
    tl.debug_barrier()
    found = tl.full([], 0, tl.int32)
    lane = tl.arange(0, PART)
    for first in range(0, count, GROUPS_A_PART):
        which = first + lane // GROUP
        group = tl.load(group_ptr + row * num_groups + which, mask=which < count, other=0)
        column = group * GROUP + lane % GROUP
        inside = (which < count) & (column < size)
        raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        value = _penalised(
            raw, column, inside, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
            table_row, PENALISED,
        )  # fmt: skip
        kept = inside & (value.to(tl.float64) >= bound)
        place = found + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(value_ptr + row * SHORT + place, value, mask=kept & (place < SHORT))
        tl.store(id_ptr + row * SHORT + place, column, mask=kept & (place < SHORT))
        found += tl.sum(kept.to(tl.int32), axis=0)
    tl.debug_barrier()
    return found


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts", "stride_step"])
def choose_kernel(
    logit_ptr, largest_ptr, weight_ptr, seen_ptr, count_ptr, control_ptr, row_ptr, uniform_ptr, step_ptr,
    group_ptr, value_ptr, id_ptr, out_ptr, size, stride_row, num_parts, stride_step, stride_seen, stride_count, stride_control,
    ONE: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
    WEIGH_ALL: tl.constexpr, PENALISED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The token of each row. Grid (rows). BITS: bits of ONE; ZERO: log of less than the share of ONE that is rounded to 0."""
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
        inside = tl.zeros([SHORT], tl.int1)
        weight = tl.full([SHORT], -1, tl.int64)
        least = tl.ceil(min_p * ONE).to(tl.int64)
        if not plain:
            # Every token that weighs as much as the k-th is in the list: their values differ by less than 2 T / weight.
            half = tl.maximum(
                size // (2 * GROUP), 1
            )  # of the groups; with all of them the bound would be that of the least likely
            wanted = tl.where(limited, tl.minimum(top_k, MAX_SHORT_K), tl.minimum(half, MAX_SHORT_K))
            kth_peak = _kth_value(peaks, wanted)
            wide = kth_peak.to(tl.float64)
            t = temperature.to(tl.float64)
            at_peak = tl.exp((wide - largest.to(tl.float64)) / t) * ONE
            nothing = largest.to(tl.float64) + t * ZERO
            slack = 1e-6 * (tl.abs(wide) + tl.abs(largest.to(tl.float64)))
            near = tl.where(at_peak > 0, wide - 2 * t / tl.maximum(at_peak, 1e-300) - slack, nothing)
            bound = tl.maximum(near, nothing - slack)
            count = _gather(
                logit_ptr, group_ptr, value_ptr, id_ptr, row, table_row, peaks.to(tl.float64) >= bound, bound, size, stride_row,
                num_groups, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control, GROUPS, PENALISED,
            )  # fmt: skip
            lane = tl.arange(0, SHORT)
            inside = lane < count
            value = tl.load(value_ptr + row * SHORT + lane, mask=inside, other=0.0)
            weight = _weights(value, largest, temperature, inside, ONE)
            if limited:
                kth = tl.full([], 0, tl.int64)
                for i in range(BITS):
                    more = kth | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
                    kth = tl.where(tl.sum((weight >= more).to(tl.int64), axis=0) >= top_k, more, kth)
                least = tl.maximum(least, kth)
            threshold = least
            if top_p < 1.0:
                mass = tl.where(least > 0, tl.sum(tl.where(weight >= least, tl.maximum(weight, 0), 0), axis=0), total)
                wide_mass = mass.to(tl.float64)
                needed = tl.minimum(tl.ceil(top_p * wide_mass), wide_mass).to(tl.int64)
                by_p = tl.full([], 0, tl.int64)
                for i in range(BITS):
                    more = by_p | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
                    by_p = tl.where(tl.sum(tl.where(weight >= more, weight, 0), axis=0) >= needed, more, by_p)
                threshold = tl.maximum(least, by_p)
            # Is everything in the list that the thresholds were found among?
            heaviest_outside = tl.exp((bound - largest.to(tl.float64)) / t) * ONE + 2
            whole = bound <= nothing
            told = (count <= SHORT) & (whole | (threshold.to(tl.float64) >= heaviest_outside))
            told = told & (whole | (not limited) | (count >= top_k)) & (whole | (least > 0) | (threshold > 0))
        if not told:
            least = tl.ceil(min_p * ONE).to(tl.int64)
            if limited:
                kth = tl.full([], 0, tl.int64)
                for i in range(BITS):
                    more = kth | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
                    count, _ = _tail(
                        logit_ptr, row, table_row, largest, temperature, more, size, stride_row, seen_ptr, count_ptr,
                        control_ptr, stride_seen, stride_count, stride_control, ONE, PENALISED,
                    )  # fmt: skip
                    kth = tl.where(count >= top_k, more, kth)
                least = tl.maximum(least, kth)
            threshold = least
            if top_p < 1.0:
                _, mass = _tail(
                    logit_ptr, row, table_row, largest, temperature, least, size, stride_row, seen_ptr, count_ptr,
                    control_ptr, stride_seen, stride_count, stride_control, ONE, PENALISED,
                )  # fmt: skip
                wide_mass = mass.to(tl.float64)
                needed = tl.minimum(tl.ceil(top_p * wide_mass), wide_mass).to(tl.int64)
                by_p = tl.full([], 0, tl.int64)
                for i in range(BITS):
                    more = by_p | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
                    _, tail = _tail(
                        logit_ptr, row, table_row, largest, temperature, more, size, stride_row, seen_ptr, count_ptr,
                        control_ptr, stride_seen, stride_count, stride_control, ONE, PENALISED,
                    )  # fmt: skip
                    by_p = tl.where(tail >= needed, more, by_p)
                threshold = tl.maximum(least, by_p)
        if told & (not plain):
            kept = tl.where(inside & (weight >= threshold), weight, 0)
            kept_total = tl.sum(kept, axis=0).to(tl.float64)
            target = tl.minimum(tl.floor(uniform * kept_total), kept_total - 1).to(tl.int64)
            place = tl.sum((tl.cumsum(kept, axis=0) <= target).to(tl.int32), axis=0)
            best = tl.load(id_ptr + row * SHORT + place).to(tl.int64)
        else:
            if not told:
                _, total = _tail(
                    logit_ptr, row, table_row, largest, temperature, threshold, size, stride_row, seen_ptr, count_ptr,
                    control_ptr, stride_seen, stride_count, stride_control, ONE, PENALISED,
                )  # fmt: skip
            wide_total = total.to(tl.float64)
            target = tl.minimum(tl.floor(uniform * wide_total), wide_total - 1).to(tl.int64)
            before = tl.full([], 0, tl.int64)
            first = tl.full([], 0, tl.int32)
            if told:
                passed = tl.cumsum(sums, axis=0) <= target
                which = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), num_parts - 1)
                before = tl.sum(tl.where(part < which, sums, 0), axis=0)
                first = which * PART
            going = tl.full([], 1, tl.int32)
            while going > 0:
                column = first + tl.arange(0, TILE)
                there = column < size
                raw = tl.load(logit_ptr + row * stride_row + column, mask=there, other=0.0).to(tl.float32)
                value = _penalised(
                    raw, column, there, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control,
                    table_row, PENALISED,
                )  # fmt: skip
                all_weights = _weights(value, largest, temperature, there, ONE)
                kept_part = tl.where(there & (all_weights >= threshold), all_weights, 0)
                sum_part = tl.sum(kept_part, axis=0)
                if (before + sum_part > target) | (first + TILE >= size):
                    passed_tokens = tl.sum(((before + tl.cumsum(kept_part, axis=0)) <= target).to(tl.int32), axis=0)
                    best = (first + passed_tokens).to(tl.int64)
                    going = tl.full([], 0, tl.int32)
                else:
                    before += sum_part
                    first += TILE
    else:
        first = tl.min(tl.where(peaks == largest, group, GROUPS), axis=0)
        column = first * GROUP + tl.arange(0, GROUP)
        there = column < size
        raw = tl.load(logit_ptr + row * stride_row + column, mask=there, other=0.0).to(tl.float32)
        value = _penalised(
            raw, column, there, row, seen_ptr, count_ptr, control_ptr, stride_seen, stride_count, stride_control, table_row,
            PENALISED,
        )  # fmt: skip
        best = tl.min(tl.where(there & (value == largest), column, size), axis=0).to(tl.int64)
    tl.store(out_ptr + row, tl.where(strange > 0, -1, best))


@triton.jit(do_not_specialize=["size", "stride_row", "num_parts"])
def score_kernel(
    logit_ptr, largest_ptr, sum_ptr, chosen_ptr, group_ptr, value_ptr, id_ptr, rank_ptr, logprob_ptr, top_id_ptr, top_ptr,
    size, stride_row, num_parts, TOP: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
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
    lane = tl.arange(0, PART)
    higher = peaks > chosen
    before = tl.cumsum(higher.to(tl.int32), axis=0) - 1
    tl.store(group_ptr + row * num_groups + before, group, mask=higher)
    count = tl.sum(higher.to(tl.int32), axis=0)
    tl.debug_barrier()
    rank = tl.full([], 1, tl.int32)
    for first in range(0, count, GROUPS_A_PART):
        which = first + lane // GROUP
        at = tl.load(group_ptr + row * num_groups + which, mask=which < count, other=0)
        column = at * GROUP + lane % GROUP
        inside = (which < count) & (column < size)
        raw = tl.load(logit_ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
        rank += tl.sum((inside & (raw > chosen)).to(tl.int32), axis=0)
    tl.store(rank_ptr + row, rank)
    tl.debug_barrier()
    if TOP > 0:
        bound = _kth_value(peaks, TOP)
        # Groups above the bound are fewer than TOP. Of those at it, the first ones by id hold enough.
        above = peaks > bound
        at_it = (peaks == bound) & (tl.cumsum((peaks == bound).to(tl.int32), axis=0) <= TOP)
        count = _gather(
            logit_ptr, group_ptr, value_ptr, id_ptr, row, row, above | at_it, bound.to(tl.float64), size, stride_row, num_groups,
            logit_ptr, logit_ptr, logit_ptr, 0, 0, 0, GROUPS, False,
        )  # fmt: skip
        if count > SHORT:  # many equal ones: those that are larger go first, and are fewer than SHORT
            bound = _first_bound(logit_ptr, row, size, stride_row, TOP)
            count = _gather_exact(logit_ptr, value_ptr, id_ptr, row, bound, size, stride_row, TOP)
        place = tl.arange(0, SHORT)
        value = tl.load(value_ptr + row * SHORT + place, mask=place < count, other=float("-inf"))
        ids = tl.load(id_ptr + row * SHORT + place, mask=place < count, other=2147483647)
        for i in range(TOP):
            most = tl.max(value, axis=0)
            first_id = tl.min(tl.where((value == most) & (place < count), ids, 2147483647), axis=0)
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
            count += tl.sum((_ordered(raw).to(tl.int64) >= middle).to(tl.int32), axis=0)
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
        tl.store(value_ptr + row * SHORT + place, raw, mask=kept & (place < SHORT))
        tl.store(id_ptr + row * SHORT + place, column, mask=kept & (place < SHORT))
        found += tl.sum(kept.to(tl.int32), axis=0)
        equal += tl.sum(same.to(tl.int32), axis=0)
    tl.debug_barrier()
    return found


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
