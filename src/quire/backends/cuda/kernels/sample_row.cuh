// One row of logits: its values after penalties, the weights of its tokens, and the sizes that all kernels of sample_tokens.cu share.
//
// Weights are whole numbers (quire.ops.draw_tokens), so that sums of them are the same in any order. No operation on values may be fused
// with another: each is rounded as the reference's.
#pragma once
#include "ptx.cuh"

#if F16
#define FROM_HALF from_f16
#else
#define FROM_HALF from_bf16
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int LOADS = 4;                // of 8 columns, that a thread takes of a part
constexpr int TILE = THREADS * 8;       // columns
constexpr int PART = TILE * LOADS;      // columns
constexpr int GROUPS = THREADS / 4;     // of a part: the columns of 4 neighbouring threads
constexpr u32 ALL = 0xFFFFFFFFu;        // lanes
constexpr float LOG2_E = 1.4426950408889634f;
#define CALLED static __device__ __noinline__  // long ones, in many places: inlined they would take seconds to compile
constexpr float FLOOR = -1e38f;  // below all logits

struct Problem {
    const void* logits;       // [S, V]
    const double* controls;   // [7, S]: temperature, top_k, top_p, min_p, repetition, frequency, presence
    const double* uniforms;   // [K, S]
    const i64* step;          // [1]
    const u32* seen;          // [R, W]; null = no row has penalties
    const short* counts;      // [R, V]
    const i64* table_rows;    // [S]
    float* peaks;             // [S, G] largest logit of each group's tokens that are not penalised, NaN if one is not finite
    float4* sums;             // [S, P, WARPS] largest logit, sum of exp(logit - that), largest value where weigh_all
    i64* weights;             // [S, P] sum of the weights of each part
    i64* ids;                 // [S]
    int* score_ids;           // [K, R, 1 + num_top] rank of the token; ids of the likeliest
    float* score_logprobs;    // [K, R, 1 + num_top] of the token; of the likeliest
    double one;               // weight of the likeliest token
    double zero;              // log of less than the share of `one` that is rounded to 0
    i64 logits_stride, controls_stride, uniforms_stride, seen_stride, counts_stride, scores_stride;
    int size, num_parts, num_top, weigh_all;  // num_top -1 = no log-probabilities
};

struct Row {
    const u16* logits;  // of 2 bytes, or as floats
    const unsigned char* seen;
    const short* counts;
    float repetition, frequency, presence;
    int size;
    bool aligned, penalised, peaked;  // peaked: no value is above its group's peak
};

DEVICE double control(const Problem& p, int which, i64 row) { return p.controls[which * p.controls_stride + row]; }

DEVICE Row row_of(const Problem& p, i64 row) {
    Row r;
    r.logits = (const u16*)p.logits + row * p.logits_stride * (FLOAT32 ? 2 : 1);
    r.size = p.size;
    r.aligned = (u64)r.logits % 16 == 0;
    r.penalised = false;
    if (p.seen) {
        const i64 at = p.table_rows[row];
        r.seen = (const unsigned char*)(p.seen + at * p.seen_stride);
        r.counts = p.counts + at * p.counts_stride;
        r.repetition = (float)control(p, 4, row);
        r.frequency = (float)control(p, 5, row);
        r.presence = (float)control(p, 6, row);
        r.penalised = r.repetition != 1.0f || r.frequency != 0.0f || r.presence != 0.0f;
    }
    r.peaked = !r.penalised;
    return r;
}

DEVICE float logit(const Row& r, int column) {
#if FLOAT32
    return ((const float*)r.logits)[column];
#else
    return FROM_HALF(r.logits[column]);
#endif
}

// 8 columns from `column` on, a multiple of 8, as they lie in memory; the lowest finite value beyond the last.
struct Eight {
    u32 words[FLOAT32 ? 8 : 4];
};
#if FLOAT32
#define LOWEST 0xFF7FFFFFu
#elif F16
#define LOWEST 0xFBFFu
#else
#define LOWEST 0xFF7Fu
#endif
DEVICE float element(const Eight& e, int i) {
#if FLOAT32
    return __uint_as_float(e.words[i]);
#else
    return FROM_HALF(i % 2 ? e.words[i / 2] >> 16 : e.words[i / 2] & 0xFFFF);
#endif
}
DEVICE Eight load_eight(const Row& r, int column) {
    Eight e;
    if (r.aligned && column + 8 <= r.size) {
        const uint4* from = (const uint4*)(r.logits + column * (FLOAT32 ? 2 : 1));
#pragma unroll
        for (int i = 0; i < (FLOAT32 ? 2 : 1); i++) {
            const uint4 a = from[i];
            e.words[4 * i] = a.x, e.words[4 * i + 1] = a.y, e.words[4 * i + 2] = a.z, e.words[4 * i + 3] = a.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
#if FLOAT32
            e.words[i] = column + i < r.size ? ((const u32*)r.logits)[column + i] : LOWEST;
#else
            const u32 half = column + i < r.size ? r.logits[column + i] : LOWEST;
            e.words[i / 2] = i % 2 ? e.words[i / 2] | half << 16 : half;
#endif
        }
    }
    return e;
}
DEVICE int load_logits(const Row& r, int column, float (&v)[8]) {
    const Eight e = load_eight(r, column);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = element(e, i);
    return min(max(r.size - column, 0), 8);
}

// A bit for each of 8 columns whose token has been seen and is penalised.
DEVICE u32 load_seen(const Row& r, int column) { return r.penalised && column < r.size ? r.seen[column / 8] : 0; }

CALLED float after_penalties(float raw, int count, float repetition, float frequency, float presence) {
    const float repeated = raw > 0 ? __fdiv_rn(raw, repetition) : __fmul_rn(raw, repetition);
    const float value = __fsub_rn(repeated, __fmul_rn(frequency, (float)count));
    return count > 0 ? __fsub_rn(value, presence) : value;
}

// Logits to values, in place.
DEVICE void penalise(const Row& r, int column, u32 seen, float (&v)[8]) {
    if (!seen) return;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (seen >> i & 1 && column + i < r.size) v[i] = after_penalties(v[i], r.counts[column + i], r.repetition, r.frequency, r.presence);
}

DEVICE int load_values(const Row& r, int column, float (&v)[8]) {
    const u32 seen = load_seen(r, column);
    const int count = load_logits(r, column, v);
    penalise(r, column, seen, v);
    return count;
}

// The largest value of this warp's columns of a part.
CALLED float largest_value(const Row& r, int column) {
    float most = FLOOR;
#pragma unroll 1
    for (int load = 0; load < LOADS; load++) {
        float v[8];
        load_values(r, column + load * TILE, v);
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, v[i]);
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, step));
    return most;
}

// Floats as integers in the same order, and back.
DEVICE u32 order(float v) {
    const u32 bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float unorder(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }
// Tokens in falling order of value, equal ones in order of their ids, are keys in falling order.
DEVICE u64 token_key(float v, int column) { return (u64)order(v + 0.0f) << 32 | (u32)~column; }  // -0 is 0
DEVICE int token_of(u64 key) { return (int)~(u32)key; }
DEVICE float number_of(u64 key) { return unorder((u32)(key >> 32)); }

// How values become weights.
struct Scale {
    float temperature, peak, largest;  // peak: the largest value; largest: divided by the temperature
    double one, zero;
};
DEVICE Scale scale_of(const Problem& p, i64 row, float peak) {
    const float temperature = (float)control(p, 0, row);
    return {temperature, peak, __fdiv_rn(peak, temperature), p.one, p.zero};
}
CALLED u64 whole_weight(float value, float temperature, float largest, double one) {
    return (u64)rint(exp((double)__fsub_rn(__fdiv_rn(value, temperature), largest)) * one);
}
DEVICE u64 weight_of(const Scale& s, float value) { return whole_weight(value, s.temperature, s.largest, s.one); }
// A value so far below `value` that its weight is less, or nothing.
CALLED float below(const Scale& s, float value) {
    const double weight = exp(((double)value - s.peak) / s.temperature) * s.one;
    const double near = value - 2.0 * s.temperature / weight - 1e-6 * (fabs((double)value) + fabs((double)s.peak));
    return __double2float_rd(fmax(near, s.peak + s.temperature * s.zero));
}
// A value below all those of a weight of at least `weight`, which is above 0.
DEVICE float value_under(const Scale& s, u64 weight) {
    return below(s, (float)(s.peak + s.temperature * log(fmax((double)weight - 0.5, 0.25) / s.one)));
}

// Sum over the lanes up to and including this one.
DEVICE u64 sum_up(u64 v) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(ALL, v, step);
        if (lane >= step) v += other;
    }
    return v;
}
DEVICE u64 warp_sum(u64 v) {
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(ALL, v, step);
    return v;
}
// Sum over the block; `words` [WARPS] are shared. Every thread comes here.
DEVICE u64 block_sum(u64 v, u64* words) {
    v = warp_sum(v);
    __syncthreads();  // `words` may be in use
    if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += words[i];
    return v;
}
DEVICE float block_max(float v, float* floats) {
#pragma unroll
    for (int step = 16; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL, v, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) floats[threadIdx.x / 32] = v;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++) v = fmaxf(v, floats[i]);
    return v;
}
DEVICE float block_add(float v, float* floats) {
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(ALL, v, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) floats[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += floats[i];
    return v;
}
