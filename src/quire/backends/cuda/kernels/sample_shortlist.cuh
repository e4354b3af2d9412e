// A shortlist: the likeliest tokens of a row, found by the largest logit of each group of columns.
//
// Since k of the threads have a group whose largest is at least the k-th largest of theirs, so have k tokens: all tokens of at least that
// logit lie in few groups, which are read again. Tokens that penalties apply to are left out of this, and looked at one by one.
#pragma once
#include "sample_row.cuh"

constexpr int SHORT = 512;         // most tokens of a list
constexpr int MAX_LISTED = 2048;   // most groups that are read again
constexpr int MAX_STAGED = 4096;   // most tokens that are looked at for a list
constexpr int MAX_WANTED = 200;    // tokens wanted; of more, THREADS largest logits tell too little
constexpr int LEAST_BIT = FLOAT32 ? 0 : F16 ? 13 : 16;  // of a logit as `order`: those below are all alike

struct alignas(16) Token {
    u64 by_value, by_logit;  // token_key of it
};

struct Shared {
    Token tokens[SHORT];
    u64 weights[SHORT];
    int staged[MAX_STAGED];
    float peaks[THREADS];
    u16 groups[MAX_LISTED];
    u64 words[WARPS];
    float floats[WARPS];
    int num_groups, num_free, num_staged;  // staged: first those free of penalties
    int count;   // of tokens; more than SHORT: the list is of no use
    u32 bound;   // every token with a value, or a logit, of at least this (as `order`) is listed
    int id, found;
    u64 kth, by_p;
    u32 low, high;
};

// The largest logit of this thread's groups to s.peaks. Returns whether all of the row is finite.
DEVICE bool load_peaks(const Problem& p, i64 row, Shared& s) {
    constexpr int AHEAD = 5;
    const int count = p.num_parts * GROUPS;
    const float* peaks = p.peaks + row * count;
    float peak = FLOOR;
    bool strange = false;
#pragma unroll 1
    for (int first = threadIdx.x; first < count; first += AHEAD * THREADS) {
        float v[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) v[a] = first + a * THREADS < count ? peaks[first + a * THREADS] : peak;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) strange |= v[a] != v[a], peak = fmaxf(peak, v[a]);
    }
    s.peaks[threadIdx.x] = peak;
    if (threadIdx.x == 0) s.id = 0;
    return !__syncthreads_or(strange);
}

// A logit that `wanted` tokens reach, and hardly more, to s.bound, by s.peaks.
DEVICE void find_bound(int wanted, Shared& s) {
    const u32 mine = order(s.peaks[threadIdx.x]);
    u32 bound = 0;
#pragma unroll 1
    for (int bit = 31; bit >= LEAST_BIT; bit--) {
        const u32 tried = bound | 1u << bit;
        const int count = __syncthreads_count(mine >= tried);
        if (count >= wanted) bound = tried;
        if (count >= wanted && count <= wanted + wanted / 16) break;
    }
    if (threadIdx.x == 0) s.bound = bound, s.num_groups = s.num_staged = s.count = 0;
    __syncthreads();
}

// The groups that have a logit of at least s.bound.
DEVICE void list_groups(const Problem& p, i64 row, Shared& s) {
    const int count = p.num_parts * GROUPS;
    const float bound = unorder(s.bound);
#pragma unroll 4
    for (int group = threadIdx.x; group < count; group += THREADS) {
        if (p.peaks[row * count + group] >= bound) {
            const int place = atomicAdd(&s.num_groups, 1);
            if (place < MAX_LISTED) s.groups[place] = (u16)group;
        }
    }
    __syncthreads();
}

// The first of the 8 columns of a group that lane `lane` of 16 has.
DEVICE int column_of(int group, int lane) { return group / GROUPS * PART + lane / 4 * TILE + group % GROUPS * 32 + lane % 4 * 8; }

DEVICE void stage(int id, Shared& s) {
    const int place = atomicAdd(&s.num_staged, 1);
    if (place < MAX_STAGED) s.staged[place] = id;
}

// Ids of the tokens of the listed groups that reach the bound and are free of penalties; 16 lanes a group, AHEAD groups on their way.
DEVICE void gather(const Row& r, Shared& s) {
    constexpr int AHEAD = FLOAT32 ? 4 : 8, TURN = THREADS / 16;
    const float bound = unorder(s.bound);
    const int num_groups = s.num_groups, lane = threadIdx.x % 16;
#pragma unroll 1
    for (int first = threadIdx.x / 16; first < num_groups; first += AHEAD * TURN) {
        Eight eights[AHEAD];
        u32 seen[AHEAD];
        u64 hits = 0;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int at = first + a * TURN, column = at < num_groups ? column_of(s.groups[at], lane) : r.size;
            seen[a] = load_seen(r, column);
            eights[a] = load_eight(r, column);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            u32 reached = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) reached |= (u32)(element(eights[a], i) >= bound) << i;
            hits |= (u64)(reached & ~seen[a]) << 8 * a;
        }
#pragma unroll 1
        for (; hits; hits &= hits - 1) {
            const int bit = __ffsll(hits) - 1, at = first + bit / 8 * TURN;
            const int id = at < num_groups ? column_of(s.groups[at], lane) + bit % 8 : r.size;
            if (id < r.size) stage(id, s);
        }
    }
}

// Ids of all tokens that penalties may apply to.
DEVICE void gather_penalised(const Row& r, Shared& s) {
    constexpr int AHEAD = 5;
    const int count = (r.size + 31) / 32;
#pragma unroll 1
    for (int first = threadIdx.x; first < count; first += AHEAD * THREADS) {
        u32 words[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) words[a] = first + a * THREADS < count ? ((const u32*)r.seen)[first + a * THREADS] : 0;
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
#pragma unroll 1
            for (u32 word = words[a]; word; word &= word - 1) {
                const int id = (first + a * THREADS) * 32 + __ffs(word) - 1;
                if (id < r.size) stage(id, s);
            }
    }
}

// Of the staged tokens, those that reach the bound by value or by logit. Returns the largest value of this thread's.
DEVICE float list_staged(const Row& r, Shared& s) {
    const float bound = unorder(s.bound);
    const int num_staged = s.num_staged;
    float peak = FLOOR;
#pragma unroll 2
    for (int i = threadIdx.x; i < num_staged; i += THREADS) {
        const int id = s.staged[i];
        const int count = i >= s.num_free ? r.counts[id] : 0;
        const float raw = logit(r, id);
        const float value = i >= s.num_free ? after_penalties(raw, count, r.repetition, r.frequency, r.presence) : raw;
        if (fmaxf(value, raw) < bound) continue;
        peak = fmaxf(peak, value);
        const int place = atomicAdd(&s.count, 1);
        if (place < SHORT) s.tokens[place] = {token_key(value, id), token_key(raw, id)};
    }
    return peak;
}

// All tokens of at least a value, or a logit, that `wanted` tokens free of penalties have. Returns the largest value listed.
DEVICE float list_tokens(const Problem& p, i64 row, const Row& r, int wanted, Shared& s) {
    find_bound(wanted, s);
    list_groups(p, row, s);
    if (s.num_groups <= MAX_LISTED) gather(r, s);
    __syncthreads();
    if (threadIdx.x == 0) s.num_free = s.num_staged;
    __syncthreads();
    if (r.penalised) gather_penalised(r, s);
    __syncthreads();
    const bool fits = s.num_groups <= MAX_LISTED && s.num_staged <= MAX_STAGED;
    const float peak = fits ? list_staged(r, s) : FLOOR;
    if (!fits && threadIdx.x == 0) s.count = SHORT + 1;
    return block_max(peak, s.floats);
}
