// Causal attention of packed queries over a paged cache, for rows of two queries or more. Flash attention: arXiv:2205.14135; the division
// of labour between warps, arXiv:2407.08608. Contract: quire.ops.paged_attention.
//
// A persistent block takes items (ROWS queries of one sequence and head) one after another, those with most keys first. Its first four
// warps have keys and queries copied to shared memory; GROUPS warpgroups attend, each with 64 of the rows. Two tiles of KEYS keys and
// two of queries are there at a time, so that copies run ahead over the ends of items. Keys come last to first: a mask is needed at the
// beginning alone.
//
// While one warpgroup multiplies, another is at its softmax: they take turns, and a warpgroup asks for the scores of the next tile
// before it weighs the values of this one. A row's peak is raised only when a score is SLACK (in powers of two) above it: weights then
// stay below 2^SLACK, and what has been summed up seldom has to be shrunk.
//
// Macros: HEAD 64 or 128; GROUPS 2 or, for HEAD 64, 3; HALF "bf16" or "f16"; IS_BF16 1 or 0. NVRTC comes without headers, so there are none.
#include "warpgroup.cuh"

constexpr int ROWS = 64 * GROUPS, KEYS = 128, THREADS = 128 * (GROUPS + 1);
constexpr int CHUNKS = HEAD / 64;  // of 128 bytes, in a head
constexpr int CHUNK_BYTES = KEYS * 128, TILE_BYTES = CHUNKS * CHUNK_BYTES;
constexpr int Q_CHUNK_BYTES = 64 * 128, Q_GROUP_BYTES = CHUNKS * Q_CHUNK_BYTES, Q_BYTES = GROUPS * Q_GROUP_BYTES;
constexpr int LOADING_REGISTERS = GROUPS == 3 ? 32 : 24, ATTENDING_REGISTERS = GROUPS == 3 ? 160 : 240;  // 64 Ki in all
constexpr float SLACK = 8;
#define NOTHING __int_as_float(0xff800000)  // -inf

struct alignas(64) TensorMap {
    char bytes[128];
};
struct Arguments {
    TensorMap q_map;       // [tokens, heads, HEAD], boxes of 64 tokens and 64 columns
    TensorMap kv_map;      // [2 blocks, slots, kv heads, HEAD], boxes of box_slots slots and 64 columns
    void* out;             // [tokens, heads, HEAD]
    const int* tables;     // [sequences, stride_table]
    const int* starts;     // [sequences + 1]
    const int* lens;       // [sequences]
    u32* counters;         // items taken beyond each block's first, blocks that are done; both 0 between launches
    int num_sequences, num_tokens, num_tiles, stride_table, num_heads, group, block_size, box_slots, num_blocks;
    float scale;           // · log2 e
};
// An item, as the loading warps tell the others.
struct alignas(16) Item {
    int num_tiles;  // of keys; 0 = its rows are zero, -1 = there are no more
    int head, token, num_rows;  // token: first row of q and out
    int position;   // of the first row in its sequence
    int seq_len, gap[2];
};

constexpr u32 Q_AREA = 0, K_AREA = 2 * Q_BYTES, V_AREA = K_AREA + 2 * TILE_BYTES, ITEMS = V_AREA + 2 * TILE_BYTES;
constexpr u32 Q_FULL = ITEMS + 2 * sizeof(Item), Q_EMPTY = Q_FULL + 16, K_FULL = Q_EMPTY + 16, K_EMPTY = K_FULL + 16;
constexpr u32 V_FULL = K_EMPTY + 16, V_EMPTY = V_FULL + 16, NEXT = V_EMPTY + 16;
static_assert(NEXT + 16 == SHARED_BYTES);

#define DEVICE __device__ __forceinline__

// Barriers in shared memory, by address.
DEVICE void barrier_init(u32 barrier, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory"); }
DEVICE void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
DEVICE void barrier_expect(u32 barrier, u32 num_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(num_bytes) : "memory");
}
// No limit: a trap here would keep the compiler from giving the attending warps their registers.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
}
// Barriers between warps: 1 + g within warpgroup g, TURN + g: it is its turn to multiply, LOADING between loading warps.
constexpr int TURN = 5, LOADING = 9;
template <int COUNT>
DEVICE void meet(int id) { asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(COUNT) : "memory"); }
template <int COUNT>
DEVICE void pass_on(int id) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(COUNT) : "memory"); }
// Between ordinary accesses of shared memory and those of the copy engine or of matrix products.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void load_queries(u32 to, const TensorMap* map, u32 barrier, int column, int head, int token) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(token) : "memory");
}
DEVICE void load_box(u32 to, const TensorMap* map, u32 barrier, int column, int head, int slot, int block) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(slot), "r"(block) : "memory");
}
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE u32 pack(float low, float high) {
    u32 packed;
    if (IS_BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// The item that the loading warps turn to next, the same for all of them; `upcoming` is the first thread's own.
DEVICE int next_item(const Arguments& a, unsigned char* shared, int num_warps, u32& upcoming) {
    asm volatile("bar.sync %0, %1;" ::"n"(LOADING), "r"(32 * num_warps) : "memory");  // all have read the one before
    if (threadIdx.x == 0) {
        *(volatile u32*)(shared + NEXT) = gridDim.x + upcoming;
        upcoming = atomicAdd(a.counters, 1);  // asked for an item ahead
    }
    asm volatile("bar.sync %0, %1;" ::"n"(LOADING), "r"(32 * num_warps) : "memory");
    return *(volatile u32*)(shared + NEXT);
}

// What item `number` is, for a whole warp: sequence b has tiles from starts[b] / ROWS + b on, which is always enough. False: nothing.
DEVICE bool find_item(const Arguments& a, int number, Item& item, int& sequence) {
    const int tile = a.num_tiles - 1 - number / a.num_heads;
    int before = 0;
    for (int b = threadIdx.x % 32; b <= a.num_sequences; b += 32) before += a.starts[b] / ROWS + b <= tile;
    sequence = __reduce_add_sync(0xffffffffu, before) - 1;
    const bool nobodys = sequence == a.num_sequences;  // rows after the last sequence, which are zero
    const int start = a.starts[sequence], queries = (nobodys ? a.num_tokens : a.starts[sequence + 1]) - start;
    const int first = (tile - (start / ROWS + sequence)) * ROWS;
    if (first >= queries || (queries == 1 && !nobodys)) return false;
    item.seq_len = nobodys ? 0 : a.lens[sequence];
    item.head = number % a.num_heads;
    item.token = start + first;
    item.num_rows = min(ROWS, queries - first);
    item.position = item.seq_len - queries + first;
    item.num_tiles = item.seq_len ? (item.position + item.num_rows + KEYS - 1) / KEYS : 0;
    return true;
}

// The loading warps. Each box of a tile takes a while to ask for, so they share them out; a warp that would get none stays away.
DEVICE void load(const Arguments& a, unsigned char* shared) {
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const int boxes = KEYS / a.box_slots, num_warps = min(4, boxes), box = 4 * (threadIdx.x % 32) + threadIdx.x / 32;
    if (threadIdx.x / 32 >= num_warps) return;
    u32 slot = 0, q_parity = 1, parities = 15;  // bit i of parities: of k_empty 0 and 1, v_empty 0 and 1
    const auto copy_tile = [&](u32 area, u32 full, u32 empty, int stage, int bit, int head, int in_block, int block) {
        barrier_wait(base + empty + 8 * stage, (parities >> bit) & 1);
        parities ^= 1 << bit;
        if (threadIdx.x == 0) barrier_expect(base + full + 8 * stage, TILE_BYTES);
        if (box < boxes)
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                load_box(base + area + stage * TILE_BYTES + c * CHUNK_BYTES + box * a.box_slots * 128, &a.kv_map, base + full + 8 * stage,
                         64 * c, head, in_block, block);
    };
    u32 upcoming = threadIdx.x == 0 ? atomicAdd(a.counters, 1) : 0;
    for (int number = blockIdx.x; number < a.num_tiles * a.num_heads; number = next_item(a, shared, num_warps, upcoming)) {
        Item item;
        int sequence;
        if (!find_item(a, number, item, sequence)) continue;
        barrier_wait(base + Q_EMPTY + 8 * slot, q_parity);
        if (threadIdx.x == 0) {
            *(Item*)(shared + ITEMS + slot * sizeof(Item)) = item;
            const u32 full = base + Q_FULL + 8 * slot;
            const int groups = item.num_tiles ? (item.num_rows + 63) / 64 : 0;
            if (groups) barrier_expect(full, groups * Q_GROUP_BYTES); else barrier_arrive(full);
            for (int g = 0; g < groups; g++)
#pragma unroll
                for (int c = 0; c < CHUNKS; c++)
                    load_queries(base + Q_AREA + slot * Q_BYTES + g * Q_GROUP_BYTES + c * Q_CHUNK_BYTES, &a.q_map, full, 64 * c, item.head,
                                 item.token + 64 * g);
        }
        if (++slot == 2) slot = 0, q_parity ^= 1;
        const int head = item.head / a.group;
        const int* table = a.tables + (long long)sequence * a.stride_table;
        int v_in_block = 0, v_block = 0;
        for (int i = 0; i <= item.num_tiles; i++) {  // keys of tile i, values of the one before
            int in_block = 0, block = 2 * a.num_blocks;  // past the end the copy engine fills in zeros
            if (i < item.num_tiles) {
                const int key = (item.num_tiles - 1 - i) * KEYS + box * a.box_slots;
                in_block = key % a.block_size;
                if (box < boxes && key < item.seq_len) block = table[key / a.block_size];
                copy_tile(K_AREA, K_FULL, K_EMPTY, i & 1, i & 1, head, in_block, block);
            }
            if (i > 0) copy_tile(V_AREA, V_FULL, V_EMPTY, (i - 1) & 1, 2 + ((i - 1) & 1), head, v_in_block, v_block + a.num_blocks);
            v_in_block = in_block;
            v_block = block;
        }
    }
    barrier_wait(base + Q_EMPTY + 8 * slot, q_parity);
    if (threadIdx.x == 0) {
        ((Item*)(shared + ITEMS))[slot].num_tiles = -1;
        barrier_arrive(base + Q_FULL + 8 * slot);
        __threadfence();
        if (atomicInc(a.counters + 1, gridDim.x - 1) == gridDim.x - 1) a.counters[0] = 0;  // the last leaves both as they were
    }
}

// Scores of keys that a row does not see become -inf; its first row sees columns up to `last`, counted from the thread's first.
DEVICE void hide(float (&s)[KEYS / 2], int last) {
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (8 * j + e > last) s[4 * j + e] = NOTHING;
            if (8 * j + e > last + 8) s[4 * j + 2 + e] = NOTHING;
        }
}

// Scores to weights, packed later; what has been summed up of row r is to be shrunk by shrink[r].
DEVICE void softmax(float (&s)[KEYS / 2], float (&peak)[2], float (&total)[2], float (&shrink)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float tops[4], sums[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            const float top = fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]);
            tops[j % 4] = j < 4 ? top : fmaxf(tops[j % 4], top);
        }
        float top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const bool higher = (top - peak[r]) * scale > SLACK;
        shrink[r] = higher ? exp2_fast((peak[r] - top) * scale) : 1.0f;
        peak[r] = higher ? top : peak[r];
        const float base = peak[r] == NOTHING ? 0.0f : peak[r] * scale;  // nothing seen yet
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& x = s[4 * j + 2 * r + e];
                x = exp2_fast(fmaf(x, scale, -base));
                sums[e] += x;
            }
        total[r] = fmaf(total[r], shrink[r], sums[0] + sums[1]);
    }
}
DEVICE void pack_weights(const float (&s)[KEYS / 2], u32 (&p)[KEYS / 4]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

DEVICE void begin_scores(float (&s)[KEYS / 2], u32 q, u32 keys) {
    pin(s);
    products_begin();
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++)
        multiply(s, q + (k / 4) * (Q_CHUNK_BYTES >> 4) + (k % 4) * 2, descriptor(keys) + (k / 4) * (CHUNK_BYTES >> 4) + (k % 4) * 2, k > 0);
    products_end();
}
DEVICE void begin_weighing(float (&o)[HEAD / 2], const u32 (&p)[KEYS / 4], u32 values) {
    pin(o);
    products_begin();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply_add(o, p + 4 * k, descriptor(values, CHUNK_BYTES) + k * (2048 >> 4));
    products_end();
}

// Slots past a sequence's end may hold anything, NaN too, and 0 · NaN is NaN: values of the last tile's last box.
DEVICE void clear_values(u32 values, int from, int to) {
    for (int i = threadIdx.x % 128; i < (to - from) * 8 * CHUNKS; i += 128) {
        const int row = from + i / (8 * CHUNKS), c = i % (8 * CHUNKS);
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(values + (c / 8) * CHUNK_BYTES + row * 128 + (c % 8) * 16), "r"(0) : "memory");
    }
    fence_async();
}

// Rows of a warpgroup to `out`, by way of where its queries were: 16 bytes at a time. A warp's 16 rows are its own.
DEVICE void store(const float (&o)[HEAD / 2], const float (&total)[2], u32 queries, u32 q_empty, unsigned short* out, int stride, int num_rows) {
    const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    uint4 v[HEAD / 16];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = total[r];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = 1.0f / sum;
        const int row = 16 * warp + lane / 4 + 8 * r;
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++)
            asm volatile("st.shared.b32 [%0], %1;"
                         ::"r"(queries + (j / 8) * Q_CHUNK_BYTES + row * 128 + (((j % 8) ^ (row % 8)) * 16) + (lane % 4) * 4),
                         "r"(pack(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse)) : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++) {
        const int row = 16 * warp + (lane + 32 * i) / (HEAD / 8), c = (lane + 32 * i) % (HEAD / 8);
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                     : "r"(queries + (c / 8) * Q_CHUNK_BYTES + row * 128 + (((c % 8) ^ (row % 8)) * 16)) : "memory");
    }
    fence_async();  // before the stores below, for which it would wait
    __syncwarp();
    if (lane == 0) barrier_arrive(q_empty);
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++) {
        const int row = 16 * warp + (lane + 32 * i) / (HEAD / 8), c = (lane + 32 * i) % (HEAD / 8);
        if (row < num_rows)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                         ::"l"(out + (long long)row * stride + c * 8), "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w) : "memory");
    }
}
DEVICE void store_zeros(unsigned short* out, int stride, int num_rows) {
    for (int i = threadIdx.x % 128; i < num_rows * (HEAD / 8); i += 128)
        *(uint4*)(out + (long long)(i / (HEAD / 8)) * stride + i % (HEAD / 8) * 8) = make_uint4(0, 0, 0, 0);
}

// What a warpgroup knows of its 64 rows of an item.
struct Rows {
    float s[KEYS / 2], o[HEAD / 2], peak[2], total[2];
    u32 p[KEYS / 4];
    u32 q;         // descriptor
    int position;  // last key, counted as `hide` does, that this thread's first row sees
    int sure;      // keys up to it are seen by all 64 rows
    int group;
};
// Parities of the next wait for k_full and v_full, stage 0 and 1.
struct Parities {
    u32 k[2], v[2];
};

// Scores of tile n from stage K to weights; values of tile n + 1 from the other stage.
template <int K>
DEVICE void step(Rows& rows, int n, u32 base, Parities& parities, float scale) {
    constexpr int V = 1 - K;
    const int lane = threadIdx.x % 32;
    float shrink[2];
    barrier_wait(base + K_FULL + 8 * K, parities.k[K]);
    parities.k[K] ^= 1;
    meet<256>(TURN + rows.group);
    begin_scores(rows.s, rows.q, base + K_AREA + K * TILE_BYTES);
    barrier_wait(base + V_FULL + 8 * V, parities.v[V]);
    parities.v[V] ^= 1;
    begin_weighing(rows.o, rows.p, base + V_AREA + V * TILE_BYTES);
    pass_on<256>(TURN + (rows.group + 1 == GROUPS ? 0 : rows.group + 1));
    products_wait<1>();
    pin(rows.s);
    if (lane == 0) barrier_arrive(base + K_EMPTY + 8 * K);
    if (n * KEYS + KEYS - 1 > rows.sure) hide(rows.s, rows.position - n * KEYS);
    softmax(rows.s, rows.peak, rows.total, shrink, scale);
    // The sums, never below 0, make this depend on all weights: the branch keeps the wait, which the compiler would otherwise put ahead of
    // the softmax, behind it, so that values are weighed meanwhile.
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f || !(rows.total[0] + rows.total[1] >= 0.0f))) {
        products_wait<0>();
        pin(rows.o);
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++) rows.o[i] *= shrink[i / 2 % 2];
    }
    products_wait<0>();
    pin(rows.o);
    if (lane == 0) barrier_arrive(base + V_EMPTY + 8 * V);
    pack_weights(rows.s, rows.p);
}

// A warpgroup's rows of one item, which begins with stage 0.
DEVICE void attend(const Arguments& a, const Item& item, u32 base, int group, u32 slot, unsigned short* out, Parities& parities) {
    const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    const u32 queries = base + Q_AREA + slot * Q_BYTES + group * Q_GROUP_BYTES;
    Rows rows;
    float shrink[2];
    rows.q = descriptor(queries);
    rows.group = group;
    rows.sure = item.position + 64 * group;
    rows.position = rows.sure + 16 * warp + lane / 4 - 2 * (lane % 4);
    rows.peak[0] = rows.peak[1] = NOTHING;
    rows.total[0] = rows.total[1] = 0;
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++) rows.o[i] = 0;

    int n = item.num_tiles - 1;
    barrier_wait(base + K_FULL, parities.k[0]);
    parities.k[0] ^= 1;
    begin_scores(rows.s, rows.q, base + K_AREA);
    products_wait<0>();
    pin(rows.s);
    if (lane == 0) barrier_arrive(base + K_EMPTY);
    if (n * KEYS + KEYS - 1 > rows.sure) hide(rows.s, rows.position - n * KEYS);
    softmax(rows.s, rows.peak, rows.total, shrink, a.scale);
    pack_weights(rows.s, rows.p);
    if (item.num_tiles * KEYS > item.seq_len) {
        barrier_wait(base + V_FULL, parities.v[0]);
        const int end = (item.seq_len + a.box_slots - 1) / a.box_slots * a.box_slots;
        clear_values(base + V_AREA, item.seq_len - n * KEYS, min(KEYS, end - n * KEYS));
        meet<128>(1 + group);
    }
    for (n--; n >= 0; n--) {
        step<1>(rows, n, base, parities, a.scale);
        if (--n < 0) break;
        step<0>(rows, n, base, parities, a.scale);
    }
    const int last = (item.num_tiles - 1) & 1;
    barrier_wait(base + V_FULL + 8 * last, last ? parities.v[1] : parities.v[0]);
    if (last) parities.v[1] ^= 1; else parities.v[0] ^= 1;
    begin_weighing(rows.o, rows.p, base + V_AREA + last * TILE_BYTES);
    products_wait<0>();
    pin(rows.o);
    if (lane == 0) barrier_arrive(base + V_EMPTY + 8 * last);
    store(rows.o, rows.total, queries, base + Q_EMPTY + 8 * slot, out, a.num_heads * HEAD, item.num_rows - 64 * group);
}

DEVICE void attend_all(const Arguments& a, unsigned char* shared) {
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) - 1;  // the compiler then knows it to be the same in a warp
    u32 slot = 0, q_parity = 0;
    Parities parities = {};
    if (group == GROUPS - 1) pass_on<256>(TURN);  // the first warpgroup begins
    for (;;) {
        barrier_wait(base + Q_FULL + 8 * slot, q_parity);
        const Item item = *(const Item*)(shared + ITEMS + slot * sizeof(Item));
        if (item.num_tiles < 0) return;
        unsigned short* out = (unsigned short*)a.out + ((long long)(item.token + 64 * group) * a.num_heads + item.head) * HEAD;
        if (item.num_tiles) {
            attend(a, item, base, group, slot, out, parities);
        } else {
            if (threadIdx.x % 32 == 0) barrier_arrive(base + Q_EMPTY + 8 * slot);
            store_zeros(out, a.num_heads * HEAD, min(64, item.num_rows - 64 * group));
        }
        if (++slot == 2) slot = 0, q_parity ^= 1;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) prefill_attention(const __grid_constant__ Arguments a) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            constexpr u32 FULL[] = {Q_FULL, K_FULL, V_FULL}, EMPTY[] = {Q_EMPTY, K_EMPTY, V_EMPTY};
            for (u32 full : FULL) barrier_init(base + full + 8 * i, 1);
            for (u32 empty : EMPTY) barrier_init(base + empty + 8 * i, 4 * GROUPS);  // a thread of each attending warp
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("griddepcontrol.wait;" ::: "memory");  // for the kernel ahead, which may still run
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOADING_REGISTERS));
        load(a, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(ATTENDING_REGISTERS));
        attend_all(a, shared);
    }
}
