// What a shortlist does not tell: passes of one block over a whole row. All threads come to each function.
#pragma once
#include "sample_shortlist.cuh"

constexpr int BINS = SHORT;  // as many as there is room for

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
    if (r.peaked && !(peaks[part * GROUPS + threadIdx.x / 4] >= bound)) return;
#pragma unroll 1
#pragma unroll 1
    for (int load = 0; load < LOADS; load++) {
        const int column = part * PART + load * TILE + threadIdx.x * 8;
        float v[8];
        const int count = load_values(r, column, v);
        f(column, v, count);
    }
}

// How many raw logits are above `v`.
CALLED u64 count_above(Row r, const float* peaks, float v, u64* words) {
    u64 count = 0;
    r.penalised = false;
#pragma unroll 1
    for (int part = 0; part * PART < r.size; part++)
        each_eight(r, part, peaks, v, [&](int, const float (&raw)[8], int num) {
#pragma unroll
            for (int i = 0; i < 8; i++) count += i < num && raw[i] > v;
        });
    return block_sum(count, words);
}

// Bins of weights, or of tokens, in s.weights: the first at which `needed` are reached, and what is reached before it, `above` included,
// to s.found and s.kth; s.found is -1 if there is none. One warp comes here.
DEVICE void find_bin(u64 above, u64 needed, Shared& s) {
    constexpr int EACH = BINS / 32;
    const u64* bins = s.weights + threadIdx.x * EACH;
    u64 mine = 0;
    for (int i = 0; i < EACH; i++) mine += bins[i];
    const u64 up_to = above + sum_up(mine);
    u64 before = up_to - mine;
    if (threadIdx.x == 0) s.found = -1;
    __syncwarp();
    if (before >= needed || up_to < needed) return;
    int bin = 0;
    while (before + bins[bin] < needed) before += bins[bin++];
    s.found = threadIdx.x * EACH + bin, s.kth = before;
}

// Calls f(value) for each of this thread's tokens whose value, as `order`, is from `low` to `high`.
template <class F>
DEVICE void each_between(const Row& r, const float* peaks, u32 low, u32 high, F f) {
#pragma unroll 1
    for (int part = 0; part * PART < r.size; part++)
        each_eight(r, part, peaks, unorder(low), [&](int, const float (&v)[8], int num) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (i < num && order(v[i]) >= low && order(v[i]) <= high) f(v[i]);
        });
}

// Weight of the token at which this many tokens, or weights, are reached in falling order; 0 if it has none. The values are parted into
// bins, linearly and from then on by their order as integers, and the bin in which that happens again, until it holds one value.
CALLED u64 weight_at(const Row& r, const float* peaks, const Scale& scale, u64 needed, bool weighed, Shared& s) {
    const float lowest = __double2float_rd(scale.peak + scale.temperature * scale.zero), steps = BINS / (scale.peak - lowest);
    u32 low = order(lowest), high = order(scale.peak);
    u64 above = 0;
#pragma unroll 1
    for (int level = 0; low < high; level++) {
        int shift = 0;
        while ((high - low) >> shift >= BINS) shift++;
        const auto bin_of = [&](float v) { return level ? (int)((high - order(v)) >> shift) : min((int)((scale.peak - v) * steps), BINS - 1); };
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) s.weights[bin] = 0;
        if (level == 0 && threadIdx.x == 0) s.low = ALL, s.high = 0;
        __syncthreads();
        each_between(r, peaks, low, high, [&](float v) { atomicAdd(&s.weights[bin_of(v)], weighed ? weight_of(scale, v) : 1ull); });
        __syncthreads();
        if (threadIdx.x < 32) find_bin(above, needed, s);
        __syncthreads();
        const int bin = s.found;
        above = s.kth;
        if (bin < 0) return 0;
        if (level > 0) {
            high -= (u32)bin << shift;
            low = max(low, high - ((1u << shift) - 1));
            continue;
        }
        u32 least = ALL, most = 0;
        each_between(r, peaks, low, high, [&](float v) {
            if (bin_of(v) == bin) least = min(least, order(v)), most = max(most, order(v));
        });
        least = __reduce_min_sync(ALL, least), most = __reduce_max_sync(ALL, most);
        if (threadIdx.x % 32 == 0) atomicMin(&s.low, least), atomicMax(&s.high, most);
        __syncthreads();
        low = s.low, high = s.high;
    }
    return weight_of(scale, unorder(high));
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
