// Shortlists: the likeliest tokens of a row, found by the largest of each group of columns, and sorted.
//
// Since k of the threads have a group whose largest is at least the k-th largest of theirs, so have k tokens: all tokens of at least that
// value lie in few groups, which are read again.
#pragma once
#include "sample_row.cuh"

constexpr int SHORT = 512;         // most tokens of a list
constexpr int MAX_LISTED = 2048;   // most groups that are read again
constexpr int MAX_WANTED = 200;    // tokens wanted; of more, THREADS largest values tell too little
constexpr int VALUES = 0, RAW = 1;

struct Shortlist {
    float bound;  // every token of at least this value is here, unless there are more than SHORT of them; inf = none is wanted
    float peak;   // the row's largest value
    int count;
    u64 keys[SHORT], sorted[SHORT];
};

struct Shared {
    Shortlist lists[2];  // of values, of raw logits
    u32 peaks[2][THREADS];
    alignas(8) u16 groups[MAX_LISTED];  // later sums of weights
    int num_groups;
    u64 words[WARPS];
    float normaliser;
    int id, kept;
    u64 target;
};

// The k-th largest of THREADS keys. One warp comes here.
DEVICE u32 kth_key(const u32 (&mine)[WARPS], int k) {
    u32 found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const u32 tried = found | 1u << bit;
        int count = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) count += mine[i] >= tried;
        count = (int)__reduce_add_sync(ALL, (u32)count);
        if (count >= k) found = tried;
        if (count == k) break;
    }
    return found;
}

// What one warp finds out of a row's largest values: the largest of all, and a value that `wanted` tokens reach.
CALLED float survey_list(Shortlist& list, const u32* keys, int wanted) {
    u32 mine[WARPS], most = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) mine[i] = keys[32 * i + threadIdx.x % 32], most = max(most, mine[i]);
    list.peak = unorder(__reduce_max_sync(ALL, most));
    list.count = 0;
    return wanted > 0 && wanted <= MAX_WANTED ? unorder(kth_key(mine, wanted)) : -NOTHING;
}

// log of the sum of exp of all raw logits. One warp comes here.
CALLED float log_sum(const Problem& p, i64 row) {
    const int count = p.num_parts * WARPS;
    const float2* sums = p.sums + row * count;
    float peak = -3e38f, sum = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) {
        const float2 part = sums[i];
        const float high = fmaxf(peak, part.x);
        sum = sum * exp2_fast((peak - high) * LOG2_E) + part.y * exp2_fast((part.x - high) * LOG2_E);
        peak = high;
    }
    float high = peak;
#pragma unroll
    for (int step = 16; step; step /= 2) high = fmaxf(high, __shfl_xor_sync(ALL, high, step));
    sum *= exp2_fast((peak - high) * LOG2_E);
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
    return high + logf(sum);
}

// Notes the groups that have a value, or a raw logit, of at least a bound.
DEVICE void list_groups(const Problem& p, i64 row, float bound, float raw_bound, Shared& s) {
    const int count = p.num_parts * GROUPS;
    for (int group = threadIdx.x; group < count; group += THREADS) {
        if (p.peaks[row * count + group] >= bound || p.raw_peaks[row * count + group] >= raw_bound) {
            const int place = atomicAdd(&s.num_groups, 1);
            if (place < MAX_LISTED) s.groups[place] = (u16)group;
        }
    }
}

// The first of the 8 columns of a group that lane `lane` of 16 has.
DEVICE int column_of(int group, int lane) { return group / GROUPS * PART + lane / 4 * TILE + group % GROUPS * 32 + lane % 4 * 8; }

CALLED void append(Shortlist& list, float v, int column) {
    const int place = atomicAdd(&list.count, 1);
    if (place < SHORT) list.keys[place] = token_key(v, column);
}

// Lists tokens of the listed groups; 16 lanes a group, AHEAD groups on their way.
DEVICE void gather(const Row& r, Shared& s) {
    constexpr int AHEAD = 4, TURN = THREADS / 16;
    const float bound = s.lists[VALUES].bound, raw_bound = s.lists[RAW].bound;
    const int lane = threadIdx.x % 16;
    for (int first = threadIdx.x / 16; first < s.num_groups; first += AHEAD * TURN) {
        float raw[AHEAD][8];
        u32 seen[AHEAD];
        int columns[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int at = first + a * TURN;
            columns[a] = at < s.num_groups ? column_of(s.groups[at], lane) : r.size;
            seen[a] = load_seen(r, columns[a]);
            load_logits(r, columns[a], raw[a]);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (raw[a][i] >= raw_bound && columns[a] + i < r.size) append(s.lists[RAW], raw[a][i], columns[a] + i);
            penalise(r, columns[a], seen[a], raw[a]);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (raw[a][i] >= bound && columns[a] + i < r.size) append(s.lists[VALUES], raw[a][i], columns[a] + i);
        }
    }
}

// Each key goes to its place in falling order; all are different. Lists that are too long stay as they are.
DEVICE void sort_lists(Shared& s) {
    const int num_values = s.lists[VALUES].count <= SHORT ? s.lists[VALUES].count : 0;
    const int both = num_values + (s.lists[RAW].count <= SHORT ? s.lists[RAW].count : 0);
    for (int i = threadIdx.x; i < both; i += THREADS) {
        Shortlist& list = s.lists[i < num_values ? VALUES : RAW];
        const u64 mine = list.keys[i < num_values ? i : i - num_values];
        int place = 0;
        for (int j = 0; j < list.count; j++) place += list.keys[j] > mine;
        list.sorted[place] = mine;
    }
}
