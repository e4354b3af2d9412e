// The warps that multiply: words from other CTAs, matrices times vectors, words for other CTAs.
#pragma once
#include "decode_layout.cuh"

DEVICE u32 word(float x, u32 tag) { return (__float_as_uint(x) & 0xffffff00u) | tag; }
DEVICE float number(u32 word) { return __uint_as_float(word & 0xffffff00u); }
DEVICE bool fresh(uint4 v, u32 tag) { return (((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) & 0xff) == 0; }

DEVICE void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

DEVICE void stamp(const Args& args, int index, int thread) {
#ifdef STAMPS
    if (thread == 0) args.stamps[(i64)blockIdx.x * ((int)args.num_layers * 10 + 3) + index] = nanoseconds();
#endif
}

struct Consumer {
    const Args& args;
    Ring ring;
    int warp, lane, part = 0;
    u32 x;  // address of the vectors to multiply by
    u32 tag = 0;
    int l = 0;  // layer
    float squares[ROWS];

    DEVICE float* floats(int at) const { return reinterpret_cast<float*>(shared + at); }
    DEVICE int thread() const { return warp * 32 + lane; }

    // Calls take(j, row, k, numbers) for the words [ROWS, K] at columns of this warp's own steps, once they carry the tag.
    template <int K, class Take>
    DEVICE void take_words(const u32* words, Take take) const {
        constexpr int VECTORS = vectors(K), ALL = ROWS * VECTORS, BATCH = ALL < 10 ? ALL : 10;
        if (ALL > 2) wait_for<K>(words);
#pragma unroll
        for (int start = 0; start < ALL; start += BATCH) {
            uint4 v[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) v[i] = make_uint4(~tag, 0, 0, 0);
            bool all = false;
            for (u32 polls = 0; !all; polls++) {
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = (start + i) / VECTORS, k = column((start + i) % VECTORS);
                    load_relaxed_if(row < ROWS && k < K && !fresh(v[i], tag), v[i], words + row * K + k);
                }
                all = true;
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = (start + i) / VECTORS, k = column((start + i) % VECTORS);
                    all &= (row >= ROWS) | (k >= K) | fresh(v[i], tag);
                }
                all = __all_sync(~0u, all);
                if (polls > MAX_POLLS) __trap();
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int row = (start + i) / VECTORS, j = (start + i) % VECTORS, k = column(j);
                if (row < ROWS && k < K) take(j, row, k, make_float4(number(v[i].x), number(v[i].y), number(v[i].z), number(v[i].w)));
            }
        }
        __syncwarp();
    }
    // Column of this lane's j-th vector: the warp's steps are every eighth, a vector of the warp covers two of them.
    DEVICE int column(int j) const { return (warp + WARPS * (2 * j + lane / 16)) * 64 + lane % 16 * 4; }
    __host__ DEVICE static constexpr int vectors(int k) { return ceil_div(ceil_div(k / 64, WARPS), 2); }

    // Waits for the first of many vectors: if all were read until they are there, the L2 would be busy with that.
    template <int K>
    DEVICE void wait_for(const u32* words) const {
        const bool mine = column(0) < K;
        uint4 v = make_uint4(~tag, 0, 0, 0);
        for (u32 polls = 0; !__all_sync(~0u, !mine | fresh(v, tag)); polls++) {
            load_relaxed_if(mine, v, words + column(0));
            if (polls > MAX_POLLS) __trap();
        }
    }

    template <int K>
    DEVICE void put_x(int row, int k, float a, float b, float c, float d) const {
        store_shared(x + row * x_stride(K) + k * 2, pack_bf16(a, b), pack_bf16(c, d));
    }

    // x = hidden state · norm weight; squares = this lane's part of its square sum. What is left of the norm is a factor per row.
    DEVICE void take_normed(const u32* words, const u16* weight) {
        constexpr int VECTORS = vectors(HIDDEN);
        uint2 w[VECTORS];
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            if (column(j) < HIDDEN) w[j] = __ldg(reinterpret_cast<const uint2*>(weight + column(j)));
#pragma unroll
        for (int row = 0; row < ROWS; row++) squares[row] = 0;
        take_words<HIDDEN>(words, [&](int j, int row, int k, float4 v) {
            squares[row] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
#pragma unroll
            for (int i = 0; i < VECTORS; i++)
                if (i == j) put_x<HIDDEN>(row, k, v.x * low_half(w[i].x), v.y * high_half(w[i].x), v.z * low_half(w[i].y), v.w * high_half(w[i].y));
        });
    }
    // Joins the lanes' square sums; a part of it is each warp's, to be seen after the next meeting.
    DEVICE void join_squares(int which) const {
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float sum = squares[row];
#pragma unroll
            for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
            if (lane == 0) floats(AT_SUMS)[(which * ROWS + row) * WARPS + warp] = sum;
        }
    }
    DEVICE float norm_factor(int which, int row) const {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += floats(AT_SUMS)[(which * ROWS + row) * WARPS + w];
        return rsqrtf(sum / HIDDEN + EPS);
    }

    // This CTA's rows of a matrix times x. early(unit): what done needs from far away, loaded before the products;
    // done(unit, local unit, row of x, product, product of the second matrix, early).
    template <class M, int NORM = -1, class Early, class Done>
    DEVICE void multiply(Early early, Done done) {
        constexpr int GATHER = M::TILES < PART_TILES ? M::TILES : PART_TILES;
        const int begin = M::begin(), end = M::end(), per_round = GATHER * M::TILE;
        Operand<M> whole;
        if (M::WHOLE) load_operand<M>(whole, 0);
        for (int first = begin; first < end; first += per_round) {
            const int last = min(first + per_round, end), unit = first + thread() / ROWS, row = thread() % ROWS;
            float given = 0;
            if (unit < last) given = early(unit);
            float* parts = floats(AT_PART) + part * PART_TILES * PART_FLOATS;
            part ^= 1;
            for (int tile = 0; tile < GATHER; tile++)
                if (first + tile * M::TILE < last) multiply_tile<M>(parts + tile * PART_FLOATS, whole);
            if (NORM >= 0 && first == begin) join_squares(NORM);
            sync_consumers();
            if (unit < last) {
                const float* mine = parts + (unit - first) / M::TILE * PART_FLOATS + (unit - first) % M::TILE * ROWS + row;
                float sum = 0, second = 0;
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    sum += mine[w * 16 * ROWS];
                    if (M::GATED) second += mine[(w * 16 + M::TILE) * ROWS];
                }
                done(unit, unit - begin, row, sum, second, given);
            }
        }
    }

    // Numbers of x for this warp's steps of a chunk, in the order in which a matrix instruction takes them.
    template <class M>
    struct Operand {
        uint4 low[ceil_div(M::CHUNK, WARPS)], high[ceil_div(M::CHUNK, WARPS)];
    };

    template <class M>
    DEVICE void load_operand(Operand<M>& b, int chunk) const {
        const int start = chunk * M::CHUNK, steps = min(M::CHUNK, M::STEPS - start), offset = (warp - start) & (WARPS - 1);
        const u32 x_row = x + lane / 4 % ROWS * x_stride(M::K) + lane % 4 * 16;
#pragma unroll
        for (int i = 0; i < ceil_div(M::CHUNK, WARPS); i++) {
            b.low[i] = b.high[i] = make_uint4(0, 0, 0, 0);
            if (offset + i * WARPS < steps) {
                b.low[i] = load_shared(x_row + (start + offset + i * WARPS) * 128);
                b.high[i] = load_shared(x_row + (start + offset + i * WARPS) * 128 + 64);
            }
        }
    }

    template <class M>
    DEVICE void multiply_tile(float* parts, const Operand<M>& whole) {
        constexpr int ROUNDS = ceil_div(M::CHUNK, WARPS), AT_ONCE = M::SLOTS > 8 ? 2 : 4;
        const int group = lane / 4, quad = lane % 4;
        const bool odd = group % 2;
        const u32 low = min(group, M::SLOTS - 1) * M::STRIDE + quad * 16, high = min(group + 8, M::SLOTS - 1) * M::STRIDE + quad * 16;
        float acc[4][4] = {};
        for (int chunk = 0; chunk < M::CHUNKS; chunk++) {
            const int start = chunk * M::CHUNK, steps = min(M::CHUNK, M::STEPS - start), offset = (warp - start) & (WARPS - 1);
            Operand<M> b = whole;
            if (!M::WHOLE) load_operand<M>(b, chunk);
            barrier_wait(ring.full(), ring.parity);
            // Rows lie a multiple of 128 bytes apart: odd ones take the halves of a step in the other order, so that a load meets all banks.
            const u32 data = ring.data() + odd * 64, other = ring.data() + !odd * 64;
#pragma unroll
            for (int first = 0; first < ROUNDS; first += AT_ONCE) {
                uint4 a0[AT_ONCE], a1[AT_ONCE], c0[AT_ONCE], c1[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE && first + i < ROUNDS; i++) {
                    // A step past the end is multiplied by zeros.
                    const int step = min(offset + (first + i) * WARPS, steps - 1);
                    a0[i] = load_shared(data + low + step * 128), a1[i] = load_shared(other + low + step * 128);
                    if (M::SLOTS > 8) c0[i] = load_shared(data + high + step * 128), c1[i] = load_shared(other + high + step * 128);
                    else c0[i] = c1[i] = make_uint4(0, 0, 0, 0);
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE && first + i < ROUNDS; i++) {
                    if (odd) swap(a0[i], a1[i]), swap(c0[i], c1[i]);
                    const uint4 b0 = b.low[first + i], b1 = b.high[first + i];
                    multiply_add(acc[0], a0[i].x, c0[i].x, a0[i].y, c0[i].y, b0.x, b0.y);
                    multiply_add(acc[1], a0[i].z, c0[i].z, a0[i].w, c0[i].w, b0.z, b0.w);
                    multiply_add(acc[2], a1[i].x, c1[i].x, a1[i].y, c1[i].y, b1.x, b1.y);
                    multiply_add(acc[3], a1[i].z, c1[i].z, a1[i].w, c1[i].w, b1.z, b1.w);
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty());
            ring.next();
        }
        float* mine = parts + warp * 16 * ROWS;
#pragma unroll
        for (int i = 0; i < (ROWS == 1 ? 1 : 2); i++) {
            if (quad * 2 + i >= ROWS) continue;
            mine[group * ROWS + quad * 2 + i] = acc[0][i] + acc[1][i] + acc[2][i] + acc[3][i];
            mine[(group + 8) * ROWS + quad * 2 + i] = acc[0][2 + i] + acc[1][2 + i] + acc[2][2 + i] + acc[3][2 + i];
        }
    }

    static DEVICE void swap(uint4& a, uint4& b) {
        const uint4 c = a;
        a = b, b = c;
    }

    DEVICE void project_qkv(const Layer& layer, u32* words, const u32* hidden, u32 next_tag) {
        take_normed(hidden, layer.norm1);
        stamp(args, l * 10 + 1, thread());
        tag = next_tag;
        const auto load_bias = [&](int unit) { return HAS_BIAS ? from_bf16(__ldg(layer.qkv_bias + unit)) : 0.f; };
        multiply<Qkv, 0>(load_bias, [&](int unit, int, int row, float sum, float, float bias) {
            store_relaxed(words + row * QKV_SIZE + unit, word(rounded(sum * norm_factor(0, row) + bias), tag));
        });
    }

    static DEVICE float nothing(int) { return 0; }

    // The residual is kept by the CTA that owns its rows, and handed out whole.
    template <class M>
    DEVICE void add_to_residual(u32* words) {
        multiply<M>(nothing, [&](int unit, int local, int row, float sum, float, float) {
            float& residual = floats(AT_RESIDUAL)[local * ROWS + row];
            residual = rounded(residual + rounded(sum));
            store_relaxed(words + row * HIDDEN + unit, word(residual, tag));
        });
    }

    DEVICE void project_gate_up(const Layer& layer, u32* words, const u32* hidden) {
        take_normed(hidden, layer.norm2);
        stamp(args, l * 10 + 7, thread());
        multiply<GateUp, 1>(nothing, [&](int unit, int, int row, float gate, float up, float) {
            const float factor = norm_factor(1, row);
            gate = rounded(gate * factor), up = rounded(up * factor);
            const float silu = rounded(gate / (1.f + __expf(-gate)));
            store_relaxed(words + row * INNER + unit, word(rounded(silu * up), tag));
        });
    }

    DEVICE void project_down(u32* words, const u32* inner) {
        take_words<INNER>(inner, [&](int, int row, int k, float4 v) { put_x<INNER>(row, k, v.x, v.y, v.z, v.w); });
        stamp(args, l * 10 + 9, thread());
        add_to_residual<Down>(words);
    }

    DEVICE void project_logits(const u32* hidden) {
        take_normed(hidden, args.norm);
        stamp(args, (int)args.num_layers * 10 + 1, thread());
        multiply<Head, 0>(nothing, [&](int unit, int, int row, float sum, float, float) { args.logits[(i64)row * VOCAB + unit] = to_bf16(sum * norm_factor(0, row)); });
    }

    DEVICE void attend(const Layer& layer, const u32* qkv, u32* parts, u64* lse);
    DEVICE void project_out(const Layer& layer, u32* words, const u32* parts, const u64* lse);
};
