// Attention of one query a row over its cached keys, and the projection of what comes out.
#pragma once
#include "decode_products.cuh"

// One warp's online softmax over tiles of 16 keys; query heads of one key head are the rows of its matrices.
struct Attention {
    float acc[HEAD / 8][4] = {}, peak[2] = {-INFINITY_, -INFINITY_}, total[2] = {};
    u32 queries;  // address of this lane's part

    static constexpr float INFINITY_ = 1e30f;  // scores never get there

    // Keys and values of 16 rows, `stride` bytes apart, of which the first `count` are keys of the sequence.
    DEVICE void add(u32 keys, u32 values, int stride, int count, int lane) {
        float s[2][4] = {}, more[2][4] = {};  // even and odd steps apart: half as long a chain of products
        const u32 key = keys + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
            const uint4 a = load_matrix(queries + k * 32), b = load_matrix(key + k * 32);
            multiply_add(k % 2 ? more[0] : s[0], a.x, a.y, a.z, a.w, b.x, b.y);
            multiply_add(k % 2 ? more[1] : s[1], a.x, a.y, a.z, a.w, b.z, b.w);
        }
        float highest[2] = {-INFINITY_, -INFINITY_};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& score = s[i / 4][i % 4];
            score = i / 4 * 8 + lane % 4 * 2 + i % 2 < count ? (score + more[i / 4][i % 4]) * SCALE_LOG2 : -INFINITY_;
            highest[i % 4 / 2] = fmaxf(highest[i % 4 / 2], score);
        }
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], 2));
            highest[r] = fmaxf(highest[r], peak[r]);
            shrink[r] = exp2_fast(peak[r] - highest[r]);
            peak[r] = highest[r];
            total[r] *= shrink[r];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& score = s[i / 4][i % 4];
            score = exp2_fast(score - peak[i % 4 / 2]);
            total[i % 4 / 2] += score;
        }
        const u32 a0 = pack_bf16(s[0][0], s[0][1]), a1 = pack_bf16(s[0][2], s[0][3]), a2 = pack_bf16(s[1][0], s[1][1]), a3 = pack_bf16(s[1][2], s[1][3]);
        const u32 value = values + lane % 16 * stride + lane / 16 * 16;
#pragma unroll
        for (int d = 0; d < HEAD / 16; d++) {
            const uint4 b = load_matrix_transposed(value + d * 32);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float(&out)[4] = acc[d * 2 + half];
                out[0] *= shrink[0], out[1] *= shrink[0], out[2] *= shrink[1], out[3] *= shrink[1];
                multiply_add(out, a0, a1, a2, a3, half ? b.z : b.x, half ? b.w : b.y);
            }
        }
    }

    // This warp's share for each head: HEAD sums, the sum of weights, the peak.
    DEVICE void write(float* out, int lane) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            total[r] += __shfl_xor_sync(~0u, total[r], 1);
            total[r] += __shfl_xor_sync(~0u, total[r], 2);
            const int head = lane / 4 + r * 8;
            if (head >= GROUP) continue;
            float* mine = out + head * (HEAD + 2);
#pragma unroll
            for (int d = 0; d < HEAD / 8; d++)
                *reinterpret_cast<float2*>(mine + d * 8 + lane % 4 * 2) = make_float2(acc[d][r * 2], acc[d][r * 2 + 1]);
            if (lane % 4 == 0) mine[HEAD] = total[r], mine[HEAD + 1] = peak[r];
        }
    }
};

// Four numbers of a head at d and four at d + HEAD / 2, as the qkv projection gave them.
DEVICE void take_pair(const u32* words, u32 tag, float (&low)[4], float (&high)[4]) {
    uint4 a, b;
    u32 polls = 0;
    do {
        a = load_relaxed(words), b = load_relaxed(words + HEAD / 2);
        if (polls++ > MAX_POLLS) __trap();
    } while (!fresh(a, tag) || !fresh(b, tag));
    low[0] = number(a.x), low[1] = number(a.y), low[2] = number(a.z), low[3] = number(a.w);
    high[0] = number(b.x), high[1] = number(b.y), high[2] = number(b.z), high[3] = number(b.w);
}

// Norm over a head, whose numbers HEAD / 8 neighbouring lanes hold.
DEVICE void norm_head(const u16* weight, int d, float (&low)[4], float (&high)[4]) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) squares += low[i] * low[i] + high[i] * high[i];
#pragma unroll
    for (int offset = HEAD / 16; offset; offset /= 2) squares += __shfl_xor_sync(~0u, squares, offset);
    const float factor = rsqrtf(squares / HEAD + EPS);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        low[i] = rounded(rounded(low[i] * factor) * from_bf16(__ldg(weight + d + i)));
        high[i] = rounded(rounded(high[i] * factor) * from_bf16(__ldg(weight + d + HEAD / 2 + i)));
    }
}

DEVICE void rotate(const float* angles, int d, float (&low)[4], float (&high)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float cosine = angles[d + i], sine = angles[HEAD / 2 + d + i], a = low[i], b = high[i];
        low[i] = a * cosine - b * sine, high[i] = b * cosine + a * sine;
    }
}

DEVICE void Consumer::attend(const Layer& layer, const u32* qkv, u32* parts, u64* lse) {
    constexpr int LANES = HEAD / 8;  // threads that prepare a head
    for (int task = blockIdx.x; task < TASKS; task += CTAS) {
        const int row = task / (KV_HEADS * SPLITS), head = task / SPLITS % KV_HEADS, split = task % SPLITS;
        const Plan plan(args, row, (int)layer.window);
        u32* out = parts + (i64)(row * SPLITS + split) * Q_SIZE + head * GROUP * HEAD;
        u64* out_lse = lse + (row * SPLITS + split) * Q_HEADS + head * GROUP;
        if (split >= plan.used) {  // nothing to say, but every word is written in every layer
            for (int i = thread(); i < GROUP * HEAD / 4; i += THREADS) store_relaxed(out + i * 4, make_uint4(tag, tag, tag, tag));
            if (thread() < GROUP) store_relaxed(out_lse + thread(), (u64)tag << 32 | __float_as_uint(-Attention::INFINITY_));
            continue;
        }
        const bool last = split == plan.used - 1;  // this split has the current token too
        const float* angles = floats(AT_ANGLES) + row * HEAD;
        const u32* words = qkv + row * QKV_SIZE;
        for (int start = 0; start < (GROUP + 2 * last) * LANES; start += THREADS) {
            const bool mine = start + thread() < (GROUP + 2 * last) * LANES;
            const int item = mine ? start + thread() : 0, which = item / LANES, d = item % LANES * 4;
            const int at = which < GROUP ? (head * GROUP + which) * HEAD : Q_SIZE + (which - GROUP) * KV_SIZE + head * HEAD;
            float low[4], high[4];
            take_pair(words + at + d, tag, low, high);
            if (HAS_QK_NORM) {
                __syncwarp();
                float a[4] = {low[0], low[1], low[2], low[3]}, b[4] = {high[0], high[1], high[2], high[3]};
                norm_head(which < GROUP ? layer.q_norm : layer.k_norm, d, a, b);
                if (which <= GROUP)
#pragma unroll
                    for (int i = 0; i < 4; i++) low[i] = a[i], high[i] = b[i];
            }
            if (which <= GROUP) rotate(angles, d, low, high);
            const u32 packed[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
            const u32 to = smem_address(shared) + (which < GROUP ? AT_Q + which * KEY_BYTES : AT_NEW + (which - GROUP) * KEY_BYTES) + d * 2;
            if (!mine) continue;
            store_shared(to, packed[0], packed[1]);
            store_shared(to + HEAD, packed[2], packed[3]);
            if (which >= GROUP) {
                u16* cache = layer.kv + (which - GROUP) * args.kv_half + __ldg(args.slots + row) * KV_SIZE + head * HEAD + d;
                *reinterpret_cast<uint2*>(cache) = make_uint2(packed[0], packed[1]);
                *reinterpret_cast<uint2*>(cache + HEAD / 2) = make_uint2(packed[2], packed[3]);
            }
        }
        sync_consumers();
        stamp(args, l * 10 + 3, thread());
        Attention attention;
        attention.queries = smem_address(shared) + AT_Q + lane % 16 * KEY_BYTES + lane / 16 * 16;
        int tile = 0;
        const int end = plan.end(split);
        for (int first = plan.begin(split); first < end; first += KEYS) {
            barrier_wait(ring.full(), ring.parity);
#pragma unroll
            for (int half = 0; half < KEYS / 16; half++, tile++) {
                const int count = end - first - half * 16;
                const u32 at = ring.data() + half * 16 * KEY_BYTES;
                if (tile % WARPS == warp && count > 0) attention.add(at, at + KEYS * KEY_BYTES, KEY_BYTES, count, lane);
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty());
            ring.next();
        }
        const u32 current = smem_address(shared) + AT_NEW;
        if (last && tile % WARPS == warp) attention.add(current, current + KEY_BYTES, 0, 1, lane);
        float* shares = floats(AT_X);
        const int num_shares = min(WARPS, tile + last);
        if (warp < num_shares) attention.write(shares + warp * GROUP * (HEAD + 2), lane);
        sync_consumers();
        for (int i = thread(); i < GROUP * HEAD / 4; i += THREADS) {
            const int q_head = i / (HEAD / 4), d = i % (HEAD / 4) * 4;
            float highest = -Attention::INFINITY_, total = 0, sums[4] = {};
            for (int w = 0; w < num_shares; w++) highest = fmaxf(highest, shares[(w * GROUP + q_head) * (HEAD + 2) + HEAD + 1]);
            for (int w = 0; w < num_shares; w++) {
                const float* share = shares + (w * GROUP + q_head) * (HEAD + 2);
                const float weight = exp2_fast(share[HEAD + 1] - highest);
                total += share[HEAD] * weight;
#pragma unroll
                for (int n = 0; n < 4; n++) sums[n] += share[d + n] * weight;
            }
            const float scale = 1.f / total;
            store_relaxed(out + i * 4, make_uint4(word(sums[0] * scale, tag), word(sums[1] * scale, tag), word(sums[2] * scale, tag), word(sums[3] * scale, tag)));
            if (d == 0) store_relaxed(out_lse + q_head, (u64)tag << 32 | __float_as_uint(highest + log2f(total)));
        }
        sync_consumers();  // before x, or the next task, takes the place of the shares
    }
}

// Joins the splits of each head, and projects.
DEVICE void Consumer::project_out(const Layer& layer, u32* words, const u32* parts, const u64* lse) {
    constexpr int VECTORS = vectors(Q_SIZE), ALL = ROWS * VECTORS, MOST = larger(1, 16 / SPLITS), BATCH = ALL < MOST ? ALL : MOST;
    for (int start = 0; start < ALL; start += BATCH) {
        uint4 v[BATCH][SPLITS] = {};
        u64 l[BATCH][SPLITS] = {};
        int used[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int row = (start + i) / VECTORS;
            used[i] = row < ROWS && column((start + i) % VECTORS) < Q_SIZE ? Plan(args, row, (int)layer.window).used : 0;
        }
        // The first split's, before all are asked for.
        for (u32 polls = 0; used[0] && (u32)(l[0][0] >> 32) != tag; polls++) {
            l[0][0] = load_relaxed(lse + start / VECTORS * SPLITS * Q_HEADS + column(start % VECTORS) / HEAD);
            if (polls > MAX_POLLS) __trap();
        }
        bool all = false;
        for (u32 polls = 0; !all; polls++) {
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int s = 0; s < SPLITS; s++) {
                    const int row = (start + i) / VECTORS, k = column((start + i) % VECTORS), split = row * SPLITS + s;
                    load_relaxed_if(s < used[i] && !fresh(v[i][s], tag), v[i][s], parts + (i64)split * Q_SIZE + k);
                    load_relaxed_if(s < used[i] && (u32)(l[i][s] >> 32) != tag, l[i][s], lse + split * Q_HEADS + k / HEAD);
                }
            all = true;
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int s = 0; s < SPLITS; s++) all &= (s >= used[i]) | (fresh(v[i][s], tag) & (u32)(l[i][s] >> 32) == tag);
            if (polls > MAX_POLLS) __trap();
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int row = (start + i) / VECTORS, k = column((start + i) % VECTORS);
            float highest = -Attention::INFINITY_, total = 0, sums[4] = {};
#pragma unroll
            for (int s = 0; s < SPLITS; s++) highest = s < used[i] ? fmaxf(highest, __uint_as_float((u32)l[i][s])) : highest;
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
                const float weight = s < used[i] ? exp2_fast(__uint_as_float((u32)l[i][s]) - highest) : 0.f;
                total += weight;
                sums[0] += number(v[i][s].x) * weight, sums[1] += number(v[i][s].y) * weight;
                sums[2] += number(v[i][s].z) * weight, sums[3] += number(v[i][s].w) * weight;
            }
            const float scale = used[i] ? 1.f / total : 0.f;
            if (row < ROWS && k < Q_SIZE) put_x<Q_SIZE>(row, k, sums[0] * scale, sums[1] * scale, sums[2] * scale, sums[3] * scale);
        }
    }
    __syncwarp();
    stamp(args, l * 10 + 5, thread());
    add_to_residual<Out>(words);
}
