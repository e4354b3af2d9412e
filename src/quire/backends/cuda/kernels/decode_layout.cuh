// What the warps of decode_step share: sizes, the deal of matrices to CTAs, memory, the ring.
#pragma once
#include "ptx.cuh"

constexpr int WARPS = 8;  // that multiply
constexpr int THREADS = WARPS * 32;
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
