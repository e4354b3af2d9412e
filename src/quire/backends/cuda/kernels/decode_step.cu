// A decoding step of a whole decoder in one persistent kernel: embedding, every layer, final norm and head, for a few rows.
//
// One CTA an SM. Each CTA owns a slice of the output rows of every matrix. Its last warp does nothing but copy those rows, in the order
// in which they are needed, into a ring in shared memory; weights depend on nothing, so the copies run ahead over the ends of phases
// and of layers, and memory never rests. The other warps multiply.
//
// Between phases CTAs hand each other vectors of 32-bit words: a number in the upper 24 bits, the phase's tag in the lower 8. Whoever
// needs a word reads it until it carries the tag: one trip through the L2, no barrier, no fence. Every word is written in every layer
// of every launch, under a tag that differs from the one before, so an old word is never mistaken for a new one. A word may be
// overwritten one layer later, because by then every CTA has published something that needed all words of the phase in question.
//
// Needs all CTAs on the device at once (a cooperative launch), and compile-time sizes as macros:
//   ROWS MOST_LAYERS HIDDEN INNER Q_HEADS KV_HEADS HEAD VOCAB EPS SCALE_LOG2 (scale · log2 e) HAS_BIAS HAS_QK_NORM BLOCK CTAS SHARED_BYTES
//   SPLITS (most parts of a row's keys)
#include "ptx.cuh"

constexpr int WARPS = 8;  // that multiply
constexpr int THREADS = WARPS * 32;
#ifndef STAGE_BYTES
#define STAGE_BYTES 28672
#endif
constexpr int Q_SIZE = Q_HEADS * HEAD, KV_SIZE = KV_HEADS * HEAD, QKV_SIZE = Q_SIZE + 2 * KV_SIZE;
constexpr int GROUP = Q_HEADS / KV_HEADS;
constexpr int SPLIT_KEYS = 64;      // least keys of a split
constexpr int KEY_BYTES = HEAD * 2 + 16;  // of a key or value in shared memory; 16 more, so that 8 rows of a matrix meet 8 banks
constexpr int KEYS = 64 * KEY_BYTES <= STAGE_BYTES ? 32 : 16;  // of a stage
constexpr int TASKS = ROWS * KV_HEADS * SPLITS;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Slices of a matrix [UNITS, K], or of two of them one after the other when GATED (a unit is then a row of each).
// A tile is up to 16 rows; it comes in CHUNKS stages of CHUNK steps of 64 columns. The fewer and the longer the copies, the better:
// a tile is as many whole rows as a stage holds, one copy; or else half as many rows, a copy each.
template <int UNITS_, int K_, bool GATED_ = false>
struct Matrix {
    static constexpr int UNITS = UNITS_, K = K_;
    static constexpr bool GATED = GATED_;
    static constexpr int STEPS = K / 64, PARTS = GATED ? 2 : 1;
    static constexpr int MOST = ceil_div(UNITS, CTAS);
    static constexpr int FIT = STAGE_BYTES / (K * 2);
    static constexpr int ROWS_OF_TILE = FIT >= 16 || FIT >= MOST * PARTS ? 16 : 8;
    static constexpr int TILES = ceil_div(MOST, ROWS_OF_TILE / PARTS);
    static constexpr int TILE = ceil_div(MOST, TILES);
    static constexpr int SLOTS = PARTS * TILE;
    static constexpr int CHUNKS = ceil_div(STEPS, STAGE_BYTES / SLOTS / 128);
    static constexpr int CHUNK = ceil_div(STEPS, CHUNKS);
    static constexpr int STRIDE = CHUNK * 128;
    static constexpr bool WHOLE = CHUNKS == 1;
    static_assert(K % 64 == 0 && UNITS >= CTAS && STRIDE * SLOTS <= STAGE_BYTES);
    DEVICE static int begin() { return (int)((i64)blockIdx.x * UNITS / CTAS); }
    DEVICE static int end() { return (int)((i64)(blockIdx.x + 1) * UNITS / CTAS); }
};
typedef Matrix<QKV_SIZE, HIDDEN> Qkv;
typedef Matrix<HIDDEN, Q_SIZE> Out;
typedef Matrix<INNER, HIDDEN, true> GateUp;
typedef Matrix<HIDDEN, INNER> Down;
typedef Matrix<VOCAB, HIDDEN> Head;

struct Layer {
    const u16 *qkv, *qkv_bias, *q_norm, *k_norm, *out, *gate_up, *down, *norm1, *norm2;
    u16* kv;
    i64 window, unused;
};

struct Args {
    const Layer* layers;
    const u16 *embedding, *norm, *head;
    const float* cos_sin;
    const i64 *ids, *slots;
    const int *lens, *tables;
    i64 num_layers, table_stride, kv_half;  // entries of a block-table row; elements from a key to its value
    u16* logits;
    u32* words;
    u64* counter;
    u64* stamps;
};

// Words that CTAs exchange.
constexpr i64 WORDS_QKV = 0, WORDS_MIDDLE = WORDS_QKV + ROWS * QKV_SIZE, WORDS_INNER = WORDS_MIDDLE + ROWS * HIDDEN,
              WORDS_HIDDEN = WORDS_INNER + ROWS * INNER, WORDS_PARTS = WORDS_HIDDEN + ROWS * HIDDEN,
              WORDS_LSE = WORDS_PARTS + (i64)ROWS * SPLITS * Q_SIZE, WORDS_END = WORDS_LSE + 2 * ROWS * SPLITS * Q_HEADS;
extern "C" __device__ const i64 num_words = WORDS_END;

// Shared memory.
constexpr int PART_TILES = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2, PART_FLOATS = WARPS * 16 * ROWS;  // tiles between two meetings of the warps; sums of a tile
__host__ __device__ constexpr int x_stride(int k) { return (k / 64 * 2 + 1) * 64; }  // rows meet different banks
constexpr int X_BYTES = larger(ROWS * larger(x_stride(INNER), larger(x_stride(HIDDEN), x_stride(Q_SIZE))), WARPS * GROUP * (HEAD + 2) * 4);
constexpr int AT_X = 0, AT_Q = AT_X + X_BYTES, AT_NEW = AT_Q + 16 * KEY_BYTES, AT_PART = AT_NEW + 2 * KEY_BYTES,
              AT_ANGLES = AT_PART + 2 * PART_TILES * PART_FLOATS * 4, AT_SUMS = AT_ANGLES + ROWS * HEAD * 4,
              AT_RESIDUAL = AT_SUMS + 2 * ROWS * WARPS * 4, AT_LAYERS = (AT_RESIDUAL + ROWS * Out::MOST * 4 + 15) / 16 * 16,
              AT_RING = (AT_LAYERS + MOST_LAYERS * (int)sizeof(Layer) + 127) / 128 * 128;
constexpr int STAGES = (SHARED_BYTES - AT_RING) / (STAGE_BYTES + 16);
constexpr int AT_BARRIERS = AT_RING + STAGES * STAGE_BYTES;
static_assert(STAGES >= 3 && GROUP <= 16 && 2 * KEYS * KEY_BYTES <= STAGE_BYTES);
extern __shared__ __align__(128) unsigned char shared[];

struct Ring {
    u32 base, barriers;
    int stage = 0;
    u32 parity = 0;
    DEVICE u32 data() const { return base + stage * STAGE_BYTES; }
    DEVICE u32 full() const { return barriers + stage * 8; }
    DEVICE u32 empty() const { return barriers + (STAGES + stage) * 8; }
    DEVICE void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// How a row's keys before the current one are dealt to splits.
struct Plan {
    int first, position, split_keys, used;
    DEVICE Plan(const Args& args, int row, int window) {
        position = __ldg(args.lens + row) - 1;
        first = window > 0 && position >= window ? position - window + 1 : 0;
        const int keys = position - first;
        split_keys = max(SPLIT_KEYS, (ceil_div(keys, SPLITS) + 31) / 32 * 32);
        used = position < 0 ? 0 : max(1, ceil_div(keys, split_keys));
    }
    DEVICE int begin(int split) const { return first + split * split_keys; }
    DEVICE int end(int split) const { return min(position, begin(split) + split_keys); }
};

// ---- the warp that copies

#ifndef WINDOW_BYTES
#define WINDOW_BYTES 57344
#endif
// The ring as the copying warp sees it. What is on its way is bounded: memory's queues are first in, first out, and with more than
// it takes to keep memory busy in them, the words that CTAs exchange would stand in line behind weights that nobody needs yet.
struct Filling : Ring {
    int oldest = 0, pending = 0, on_the_way = 0, mine = 0;  // stages not known to have landed, bytes in them; lane i: bytes of stage i
    u32 oldest_parity = 0;

    // Waits until the next stage is free and `num_bytes` may be asked for.
    DEVICE void reserve(int num_bytes, int lane) {
        barrier_wait(empty(), parity ^ 1);
        while (pending == STAGES || (pending && on_the_way + num_bytes > WINDOW_BYTES)) {
            barrier_wait(barriers + oldest * 8, oldest_parity);
            pending--;
            on_the_way -= __shfl_sync(~0u, mine, oldest);
            if (++oldest == STAGES) oldest = 0, oldest_parity ^= 1;
        }
        if (lane == stage) mine = num_bytes;
        pending++;
        on_the_way += num_bytes;
    }
};

template <class M>
DEVICE void stream(Filling& ring, const u16* weight, int lane, u64 policy) {
    const int begin = M::begin(), end = M::end();
    for (int first = begin; first < end; first += M::TILE) {
        const int count = min(M::TILE, end - first);
        for (int chunk = 0; chunk < M::CHUNKS; chunk++) {
            const int row_bytes = min(M::CHUNK, M::STEPS - chunk * M::CHUNK) * 128;
            ring.reserve(count * M::PARTS * row_bytes, lane);
            if (lane == 0) barrier_expect(ring.full(), count * M::PARTS * row_bytes);
            __syncwarp();
            const int half = M::WHOLE ? lane : lane / M::TILE, unit = M::WHOLE ? 0 : lane % M::TILE;
            const u16* source = weight + (i64)(first + unit + half * M::UNITS) * M::K + chunk * M::CHUNK * 64;
            const u32 target = ring.data() + (half * M::TILE + unit) * M::STRIDE;
            if (half < M::PARTS && unit < count) copy_bulk(target, source, M::WHOLE ? count * row_bytes : row_bytes, ring.full(), policy);
            ring.next();
        }
    }
}

DEVICE void stream_keys(Filling& ring, const Args& args, const Layer& layer, int lane) {
    constexpr int PIECES = HEAD / 8, AT_ONCE = 32 / PIECES;  // of 16 bytes a key; keys that the warp copies at once
    for (int task = blockIdx.x; task < TASKS; task += CTAS) {
        const int row = task / (KV_HEADS * SPLITS), head = task / SPLITS % KV_HEADS, split = task % SPLITS;
        const Plan plan(args, row, (int)layer.window);
        const int end = split < plan.used ? plan.end(split) : 0;
        for (int first = plan.begin(split); first < end; first += KEYS) {
            const int key = min(first + lane, end - 1);
            const int slot = __ldg(args.tables + row * args.table_stride + key / BLOCK) * BLOCK + key % BLOCK;
            ring.reserve(KEYS * HEAD * 4, lane);
#pragma unroll
            for (int i = 0; i < KEYS / AT_ONCE; i++) {
                const int mine = i * AT_ONCE + lane / PIECES;
                const u16* source = layer.kv + (i64)__shfl_sync(~0u, slot, mine) * KV_SIZE + head * HEAD + lane % PIECES * 8;
                const u32 target = ring.data() + mine * KEY_BYTES + lane % PIECES * 16;
                if (first + mine < end) {
                    copy_16(target, source);
                    copy_16(target + KEYS * KEY_BYTES, source + args.kv_half);
                }
            }
            barrier_arrive_copied(ring.full());
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.full());
            ring.next();
        }
    }
}

DEVICE void produce(Filling ring, const Args& args, const Layer* layers, int lane) {
    const u64 once = evict_first();
    const int num_layers = (int)args.num_layers;
    for (int l = 0; l < num_layers; l++) {
        stream<Qkv>(ring, layers[l].qkv, lane, once);
        stream_keys(ring, args, layers[l], lane);
        stream<Out>(ring, layers[l].out, lane, once);
        stream<GateUp>(ring, layers[l].gate_up, lane, once);
        stream<Down>(ring, layers[l].down, lane, once);
    }
    stream<Head>(ring, args.head, lane, once);
}

// ---- the warps that multiply

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
        constexpr int VECTORS = vectors(K), BATCH = VECTORS < 10 ? VECTORS : 10;
        for (int row = 0; row < ROWS; row++) {
            if (VECTORS > BATCH) wait_for<K>(words + row * K);
#pragma unroll
            for (int start = 0; start < VECTORS; start += BATCH) {
                uint4 v[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; i++) v[i] = make_uint4(~tag, 0, 0, 0);
                bool all = false;
                for (u32 polls = 0; !all; polls++) {
#pragma unroll
                    for (int i = 0; i < BATCH; i++) {
                        const int k = column(start + i);
                        load_relaxed_if(k < K && !fresh(v[i], tag), v[i], words + row * K + k);
                    }
                    all = true;
#pragma unroll
                    for (int i = 0; i < BATCH; i++) all &= column(start + i) >= K | fresh(v[i], tag);
                    all = __all_sync(~0u, all);
                    if (polls > MAX_POLLS) __trap();
                }
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int k = column(start + i);
                    if (k < K) take(start + i, row, k, make_float4(number(v[i].x), number(v[i].y), number(v[i].z), number(v[i].w)));
                }
            }
        }
        __syncwarp();
    }
    // Column of this lane's j-th vector: the warp's steps are every eighth, a vector of the warp covers two of them.
    DEVICE int column(int j) const { return (warp + WARPS * (2 * j + lane / 16)) * 64 + lane % 16 * 4; }
    __host__ DEVICE static constexpr int vectors(int k) { return ceil_div(ceil_div(k / 64, WARPS), 2); }

    // Waits for one vector of a long row, so that waiting does not keep the L2 busy.
    template <int K>
    DEVICE void wait_for(const u32* words) const {
        for (u32 polls = 0; !__all_sync(~0u, fresh(load_relaxed(words + column(0)), tag)); polls++)
            if (polls > MAX_POLLS) __trap();
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

// ---- attention of one query a row

// One warp's online softmax over tiles of 16 keys; query heads of one key head are the rows of its matrices.
struct Attention {
    float acc[HEAD / 8][4] = {}, peak[2] = {-INFINITY_, -INFINITY_}, total[2] = {};
    u32 queries;  // address of this lane's part

    static constexpr float INFINITY_ = 1e30f;  // scores never get there

    // Keys and values of 16 rows, `stride` bytes apart, of which the first `count` are keys of the sequence.
    DEVICE void add(u32 keys, u32 values, int stride, int count, int lane) {
        float s[2][4] = {};
        const u32 key = keys + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
            const uint4 a = load_matrix(queries + k * 32), b = load_matrix(key + k * 32);
            multiply_add(s[0], a.x, a.y, a.z, a.w, b.x, b.y);
            multiply_add(s[1], a.x, a.y, a.z, a.w, b.z, b.w);
        }
        float highest[2] = {-INFINITY_, -INFINITY_};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& score = s[i / 4][i % 4];
            score = i / 4 * 8 + lane % 4 * 2 + i % 2 < count ? score * SCALE_LOG2 : -INFINITY_;
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
        attention.write(shares + warp * GROUP * (HEAD + 2), lane);
        sync_consumers();
        for (int i = thread(); i < GROUP * HEAD / 4; i += THREADS) {
            const int q_head = i / (HEAD / 4), d = i % (HEAD / 4) * 4;
            float highest = -Attention::INFINITY_, total = 0, sums[4] = {};
#pragma unroll
            for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, shares[(w * GROUP + q_head) * (HEAD + 2) + HEAD + 1]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
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
    constexpr int VECTORS = vectors(Q_SIZE);
    for (int row = 0; row < ROWS; row++) {
        const int used = Plan(args, row, (int)layer.window).used;
        for (int j = 0; j < VECTORS; j++) {
            const int k = column(j);
            if (k >= Q_SIZE) continue;
            uint4 v[SPLITS] = {};
            u64 l[SPLITS] = {};
            bool all = false;
            for (u32 polls = 0; !all; polls++) {
                all = true;
#pragma unroll
                for (int s = 0; s < SPLITS; s++) {
                    load_relaxed_if(s < used && !fresh(v[s], tag), v[s], parts + (i64)(row * SPLITS + s) * Q_SIZE + k);
                    load_relaxed_if(s < used && (u32)(l[s] >> 32) != tag, l[s], lse + (row * SPLITS + s) * Q_HEADS + k / HEAD);
                }
#pragma unroll
                for (int s = 0; s < SPLITS; s++)
                    all &= s >= used | (fresh(v[s], tag) & (u32)(l[s] >> 32) == tag);
                if (polls > MAX_POLLS) __trap();
            }
            float highest = -Attention::INFINITY_, total = 0, sums[4] = {};
#pragma unroll
            for (int s = 0; s < SPLITS; s++)
                highest = s < used ? fmaxf(highest, __uint_as_float((u32)l[s])) : highest;
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
                const float weight = s < used ? exp2_fast(__uint_as_float((u32)l[s]) - highest) : 0.f;
                total += weight;
                sums[0] += number(v[s].x) * weight, sums[1] += number(v[s].y) * weight;
                sums[2] += number(v[s].z) * weight, sums[3] += number(v[s].w) * weight;
            }
            const float scale = used ? 1.f / total : 0.f;
            put_x<Q_SIZE>(row, k, sums[0] * scale, sums[1] * scale, sums[2] * scale, sums[3] * scale);
        }
    }
    __syncwarp();
    stamp(args, l * 10 + 5, thread());
    add_to_residual<Out>(words);
}

// ---- the kernel

DEVICE void consume(Consumer c, const Args& args, const Layer* layers) {
    u32* const words = args.words;
    u64* const lse = reinterpret_cast<u64*>(words + WORDS_LSE);
    const u32 step = (u32)load_relaxed(args.counter);
    const int num_layers = (int)args.num_layers;
    c.tag = step % 255 + 1;
    for (int i = c.thread(); i < (Out::end() - Out::begin()) * ROWS; i += THREADS) {
        const int unit = Out::begin() + i / ROWS, row = i % ROWS;
        const i64 id = min(max(__ldg(args.ids + row), 0ll), (i64)VOCAB - 1);
        const float value = from_bf16(__ldg(args.embedding + id * HIDDEN + unit));
        c.floats(AT_RESIDUAL)[i] = value;
        store_relaxed(words + WORDS_HIDDEN + row * HIDDEN + unit, word(value, c.tag));
    }
    sync_consumers();
    for (int l = 0; l < num_layers; l++) {
        const Layer& layer = layers[l];
        c.l = l;
        stamp(args, l * 10 + 0, c.thread());
        // The hidden state carries the tag of the layer before.
        c.project_qkv(layer, words + WORDS_QKV, words + WORDS_HIDDEN, (step + l + 1) % 255 + 1);
        stamp(args, l * 10 + 2, c.thread());
        c.attend(layer, words + WORDS_QKV, words + WORDS_PARTS, lse);
        stamp(args, l * 10 + 4, c.thread());
        c.project_out(layer, words + WORDS_MIDDLE, words + WORDS_PARTS, lse);
        stamp(args, l * 10 + 6, c.thread());
        c.project_gate_up(layer, words + WORDS_INNER, words + WORDS_MIDDLE);
        stamp(args, l * 10 + 8, c.thread());
        c.project_down(words + WORDS_HIDDEN, words + WORDS_INNER);
    }
    stamp(args, (int)args.num_layers * 10, c.thread());
    c.project_logits(words + WORDS_HIDDEN);
    stamp(args, (int)args.num_layers * 10 + 2, c.thread());
    if (blockIdx.x == 0 && c.thread() == 0) store_relaxed(args.counter, (step + num_layers + 1) % 255);
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) decode_step(const __grid_constant__ Args args) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 base = smem_address(shared);
    Ring ring{base + AT_RING, base + AT_BARRIERS};
    Layer* layers = reinterpret_cast<Layer*>(shared + AT_LAYERS);
    const int num_layers = (int)args.num_layers;
    for (int i = threadIdx.x; i < num_layers * (int)sizeof(Layer) / 16; i += THREADS + 32)
        reinterpret_cast<uint4*>(layers)[i] = __ldg(reinterpret_cast<const uint4*>(args.layers) + i);
    // Zeros: what a stage held before may be multiplied by a weight of zero, so it must be a number.
    for (int i = threadIdx.x; i < STAGES * STAGE_BYTES / 16; i += THREADS + 32) reinterpret_cast<uint4*>(shared + AT_RING)[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < 16 * KEY_BYTES / 16; i += THREADS + 32) reinterpret_cast<uint4*>(shared + AT_Q)[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < ROWS * HEAD; i += THREADS + 32)
        reinterpret_cast<float*>(shared + AT_ANGLES)[i] = __ldg(args.cos_sin + (i64)max(__ldg(args.lens + i / HEAD) - 1, 0) * HEAD + i % HEAD);
    if (threadIdx.x < STAGES) {
        barrier_init(ring.barriers + threadIdx.x * 8, 1);
        barrier_init(ring.barriers + (STAGES + threadIdx.x) * 8, WARPS);
    }
    fence_async_proxy();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (warp == WARPS) {
        Filling filling;
        filling.base = ring.base, filling.barriers = ring.barriers;
        produce(filling, args, layers, lane);
    } else {
        consume(Consumer{args, ring, warp, lane, 0, base + AT_X}, args, layers);
    }
}
