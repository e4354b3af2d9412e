// What a shortlist does not tell: passes of one block over a whole row. All threads come to each function.
#pragma once
#include "sample_shortlist.cuh"

// The largest key (token_key) below `limit` of the whole row, of values or of raw logits; 0 = there is none.
CALLED u64 next_key(const Row& r, bool raw, u64 limit, u64* words) {
    u64 most = 0;
#pragma unroll 1
    for (int column = threadIdx.x * 8; column < r.size; column += TILE) {
        float v[8];
        const int count = raw ? load_logits(r, column, v) : load_values(r, column, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u64 key = token_key(v[i], column + i);
            if (i < count && key < limit && key > most) most = key;
        }
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        const u64 other = __shfl_xor_sync(ALL, most, step);
        if (other > most) most = other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = most;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) most = words[i] > most ? words[i] : most;
    return most;
}

// Calls f(column, values, how many) for each 8 columns of this thread in one part, unless their group has nothing of at least `bound`.
template <class F>
DEVICE void each_eight(const Row& r, int part, const float* peaks, float bound, F f) {
    if (!(peaks[part * GROUPS + threadIdx.x / 4] >= bound)) return;
#pragma unroll 1
    for (int load = 0; load < LOADS; load++) {
        const int column = part * PART + load * TILE + threadIdx.x * 8;
        float v[8];
        const int count = load_values(r, column, v);
        f(column, v, count);
    }
}

// How many raw logits are above `v`.
CALLED u64 count_above(Row r, const float* raw_peaks, float v, u64* words) {
    u64 count = 0;
    r.penalised = false;
#pragma unroll 1
    for (int part = 0; part * PART < r.size; part++)
        each_eight(r, part, raw_peaks, v, [&](int, const float (&raw)[8], int num) {
#pragma unroll
            for (int i = 0; i < 8; i++) count += i < num && raw[i] > v;
        });
    return block_sum(count, words);
}

// How many tokens, or weights of tokens, have a value of at least `bound`.
CALLED u64 reached(const Row& r, const float* peaks, const Scale& scale, float bound, bool weighed, u64* words) {
    u64 sum = 0;
#pragma unroll 1
    for (int part = 0; part * PART < r.size; part++)
        each_eight(r, part, peaks, bound, [&](int, const float (&v)[8], int num) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (i < num && v[i] >= bound) sum += weighed ? weight_of(scale, v[i]) : 1;
        });
    return block_sum(sum, words);
}

// Weight of the token at which this many tokens, or weights, are reached in falling order; 0 if it has none. Steps away from the largest
// value double until it is reached; then the last step is halved.
CALLED u64 weight_at(const Row& r, const float* peaks, const Scale& scale, u64 needed, bool weighed, u64* words) {
    const u32 lowest = order(__double2float_rd(scale.peak + scale.temperature * scale.zero));
    u32 high = order(scale.peak) + 1, low = high, step = 1u << 19;
    do {
        high = low;
        if (high == lowest) return 0;
        low = high - lowest > step ? high - step : lowest;
        step *= 2;
    } while (reached(r, peaks, scale, unorder(low), weighed, words) < needed);
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        if (reached(r, peaks, scale, unorder(middle), weighed, words) >= needed) low = middle;
        else high = middle;
    }
    return weight_of(scale, unorder(low));
}

// Sums of the weights of at least `least`, which is above 0, of each part to `sums`, and of all.
CALLED u64 weigh_parts(const Row& r, const float* peaks, const Scale& scale, u64 least, i64* sums, u64* words) {
    const float under = value_under(scale, least);
    u64 total = 0;
#pragma unroll 1
    for (int part = 0; part * PART < r.size; part++) {
        u64 sum = 0;
        each_eight(r, part, peaks, under, [&](int, const float (&v)[8], int num) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (i >= num || v[i] < under) continue;
                const u64 weight = weight_of(scale, v[i]);
                if (weight >= least) sum += weight;
            }
        });
        sum = block_sum(sum, words);
        if (threadIdx.x == 0) sums[part] = (i64)sum;
        total += sum;
    }
    __syncthreads();
    return total;
}

// Of weights of at least `least` in order of their tokens: the token that `target` falls in, by the sums of the parts.
CALLED void draw_in_order(const Row& r, const Scale& scale, u64 least, const i64* sums, int num_parts, u64 target, Shared& s) {
    u64 before = 0;
    int part = 0;
    while (part + 1 < num_parts && before + (u64)sums[part] <= target) before += (u64)sums[part++];
#pragma unroll 1
    for (int load = 0; load < LOADS; load++) {
        const int column = part * PART + load * TILE + threadIdx.x * 8;
        float v[8];
        u64 weights[8], sum = 0;
        const int count = load_values(r, column, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            weights[i] = i < count ? weight_of(scale, v[i]) : 0;
            if (weights[i] < least) weights[i] = 0;
            sum += weights[i];
        }
        const u64 up_to = sum_up(sum);
        __syncthreads();
        if (threadIdx.x % 32 == 31) s.words[threadIdx.x / 32] = up_to;
        __syncthreads();
        u64 reach = before + up_to - sum;
        for (int i = 0; i < WARPS; i++) {
            if (i < threadIdx.x / 32) reach += s.words[i];
            before += s.words[i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (reach <= target && target < reach + weights[i]) s.id = column + i;
            reach += weights[i];
        }
    }
    __syncthreads();
}
