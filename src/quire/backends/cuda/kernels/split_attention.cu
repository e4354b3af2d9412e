// Attention of rows with one query over a paged cache, their keys split among programs (arXiv:2311.01282); on the way queries and keys of
// the step are turned by their positions, and its keys and values put into the cache. Contract: quire.ops.rotary_attention.
//
// The grid is as many programs as the device holds. Items of the step's plan (attention_plan.cu), splits of rows, come with most keys
// first; for each HEADS of an item's key heads, programs take turns forth and back, so that all have about as many keys. A head has
// KEY_WARPS warps, which take its tiles of 16 keys in turn, by their place in the split. A warp asks for its tiles itself, STAGES ahead and
// across the ends of items; nothing but the sums of an item is shared between warps. (Heads of a token lie side by side in the cache; where
// there are many rows, memory is a little faster when they are read at the same time.)
//
// What is asked for before the kernel ahead has ended (`early`): keys and values of earlier tokens. They were written a step ago, and the
// plan, tables and lengths ahead of the step's first kernel of this kind, which does none of it early. That all of these are complete
// follows from each program's waiting before it lets the next kernel start: kernels launched after one of these start when all that were
// launched before it have ended.
//
// Queries are the columns of the products, so that up to 8 heads fill an instruction: scores = keys · queries, sums = values · weights.
//
// Macros: HEAD 64 or 128; GROUP, query heads of a key head, up to 8; KV_HEADS; BLOCK_SIZE, a multiple of 16; IS_BF16; HEADS; KEY_WARPS;
// STAGES, tiles of a warp on their way; CHUNK, tiles it takes at once; PER_PROCESSOR, programs of a multiprocessor.
#include "attention_plan.cuh"
#include "tiles.cuh"

constexpr int TILE = 16, WARPS = HEADS * KEY_WARPS, THREADS = 32 * WARPS;
constexpr int ROW_BYTES = HEAD * 2, HALF_BYTES = TILE * ROW_BYTES, SLOT_BYTES = 2 * HALF_BYTES;  // a slot: keys of a tile, then values
constexpr int RING_BYTES = STAGES * SLOT_BYTES;                                                  // of a warp
constexpr int STRIDE = KV_HEADS * HEAD;  // from a key to the next of its block
constexpr int Q_HEADS = KV_HEADS * GROUP;
constexpr int PARTS = KV_HEADS / HEADS;  // of an item, for a program each
constexpr int LD = HEAD + 4;  // floats from head to head of a warp's sums: banks of a store differ
constexpr int SHARE_FLOATS = (GROUP * (LD + 2) + 3) / 4 * 4;  // of a warp; read 16 bytes at a time
static_assert(KV_HEADS % HEADS == 0 && WARPS * (RING_BYTES + SHARE_FLOATS * 4) + 16 == SHARED_BYTES);
#define NOTHING __int_as_float(0xff800000)  // -inf

struct Arguments {
    const u16 *q, *k, *v;  // [tokens, heads, HEAD]
    u16* kv;               // [2, blocks, BLOCK_SIZE, KV_HEADS, HEAD]
    const float* cos_sin;  // [positions, HEAD]; null = queries have been turned, and the newest keys are in the cache
    const i64* slots;      // [tokens]
    const int* tables;     // [rows, stride_table]
    const Plan* plan;
    u16* out;              // [tokens, Q_HEADS, HEAD]
    float* partial;        // [rows, Q_HEADS, most_splits, HEAD], of rows with more than one split
    float* lse;            // [rows, Q_HEADS, most_splits]
    u32* arrived;          // [rows, PARTS] splits done; zero between launches
    i64 to_values;         // from a key to its value
    int stride_q, stride_k, stride_v, stride_table, split_keys, most_splits, early;
    float scale;           // · log2 e
};

// Of pairs that are HEAD / 2 apart.
DEVICE void turn(u32& low, u32& high, float2 cosine, float2 sine) {
    const float2 a = unpack(low), b = unpack(high);
    low = pack(a.x * cosine.x - b.x * sine.x, a.y * cosine.y - b.y * sine.y);
    high = pack(b.x * cosine.x + a.x * sine.x, b.y * cosine.y + a.y * sine.y);
}
// In a tile rows lie as they come, their pieces of 16 bytes in an order by which neither copies nor matrix loads meet in a bank.
DEVICE u32 in_tile(int row, int piece) { return row * ROW_BYTES + ((piece ^ (row % 8)) * 16); }

// An item and the part of its key heads that the program has, the first of which is `first`; `head` is this warp's.
struct Task {
    Item item;
    int first, head;

    DEVICE int num_tiles() const { return (item.end - item.begin + TILE - 1) / TILE; }
    // The row's newest key is among these and not in the cache.
    DEVICE bool has_newest(const Arguments& a) const { return a.cos_sin && item.end == item.seq_len && item.seq_len > 0; }
};

// This program's tasks, read ahead of their use.
struct Tasks {
    int round = 0, num_tasks;
    Task upcoming;

    DEVICE Tasks(const Arguments& a, int num_tasks) : num_tasks(num_tasks) { fetch(a); }
    DEVICE int index() const { return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); }
    DEVICE void fetch(const Arguments& a) {
        const int next = index();
        if (next >= num_tasks) return;
        const int4* item = reinterpret_cast<const int4*>(a.plan->items + next / PARTS);
        const int4 x = __ldcg(item), y = __ldcg(item + 1);
        const int first = next % PARTS * HEADS;
        upcoming = {{x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w}, first, first + (int)threadIdx.x / (32 * KEY_WARPS)};
    }
    // The next task; false: there is none.
    DEVICE bool next(const Arguments& a, Task& task) {
        if (index() >= num_tasks) return false;
        task = upcoming;
        round++;
        fetch(a);
        return true;
    }
};

// What a warp asks for: its tiles of all of the program's tasks, one after another.
struct Loader {
    static constexpr int PIECES = HEAD / 8, ROWS = 32 / PIECES;  // of 16 bytes in a row; rows that a warp copies at once

    Tasks tasks;
    Task task, later;
    bool is_later, is_done = false;
    int left = 0, asked, num_keys;  // tiles of the task that are left and asked for; keys to be read from the next tile on
    int entry, later_entry;         // block-table entries of 32 tiles, one a lane
    const u16* keys;                // this lane's piece of the head, in block 0
    u32 ring, slot = 0;
    int lane, warp;  // warp: of those of its head

    DEVICE Loader(const Arguments& a, int num_tasks, u32 ring, int warp, int lane) : tasks(a, num_tasks), ring(ring), lane(lane), warp(warp) {
        is_later = tasks.next(a, later);
        if (is_later) later_entry = entry_of(a, later, 0);
    }
    // Of this warp's tile first + lane.
    DEVICE int entry_of(const Arguments& a, const Task& t, int first) const {
        const int key = t.item.begin + (warp + (first + lane) * KEY_WARPS) * TILE;
        return key < t.item.end ? __ldcg(a.tables + (i64)t.item.row * a.stride_table + key / BLOCK_SIZE) : 0;
    }
    // To the next task that has tiles for this warp.
    DEVICE void advance(const Arguments& a) {
        while (left == 0 && !is_done) {
            is_done = !is_later;
            if (is_done) return;
            task = later, entry = later_entry;
            is_later = tasks.next(a, later);
            if (is_later) later_entry = entry_of(a, later, 0);
            left = (task.num_tiles() - warp + KEY_WARPS - 1) / KEY_WARPS, asked = 0;
            num_keys = task.item.end - task.has_newest(a) - task.item.begin - warp * TILE;
            keys = a.kv + task.head * HEAD + (lane / PIECES) * STRIDE + lane % PIECES * 8;
        }
    }
    DEVICE void copy(const Arguments& a, int block) const {
        const int in_block = BLOCK_SIZE == TILE ? 0 : (task.item.begin + (warp + asked * KEY_WARPS) * TILE) % BLOCK_SIZE;
        const u16* from = keys + ((i64)block * BLOCK_SIZE + in_block) * STRIDE;
        const u16* values = from + a.to_values;
        const u32 to = ring + slot * SLOT_BYTES + in_tile(lane / PIECES, lane % PIECES);
        const bool is_whole = num_keys >= TILE;
#pragma unroll
        for (int i = 0; i < TILE; i += ROWS) {
            const u32 target = (to ^ i % 8 * 16) + i * ROW_BYTES;
            const int num_bytes = is_whole || lane / PIECES + i < num_keys ? 16 : 0;
            copy_or_clear(target, from + i * STRIDE, num_bytes);
            copy_or_clear(target + HALF_BYTES, values + i * STRIDE, num_bytes);
        }
    }
    // Asks for one more tile, if there is one; each is a group of copies.
    DEVICE void ask(const Arguments& a) {
        advance(a);
        if (is_done) return;
        if (asked % 32 == 0 && asked > 0) entry = entry_of(a, task, asked);
        copy(a, __shfl_sync(~0u, entry, asked % 32));
        end_of_copies();
        left--, asked++, num_keys -= KEY_WARPS * TILE;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    // Until the CHUNK tiles asked for first are there.
    DEVICE void wait() const {
        if (is_done) wait_for_copies<0>();
        else wait_for_copies<STAGES - CHUNK>();
        __syncwarp();
    }
};

// Queries of a key head as the products take them: a lane has two neighbouring numbers of each eight, of head lane / 4.
struct Queries {
    u32 words[HEAD / 8];
    float2 cosine[HEAD / 16], sine[HEAD / 16];

    DEVICE void load_angles(const Arguments& a, const Task& t, int lane) {
        if (!a.cos_sin || t.item.seq_len == 0) return;
        const float2* row = reinterpret_cast<const float2*>(a.cos_sin + (i64)(t.item.seq_len - 1) * HEAD) + lane % 4;
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++) cosine[i] = __ldg(row + i * 4), sine[i] = __ldg(row + HEAD / 4 + i * 4);
    }
    DEVICE void load(const Arguments& a, const Task& t, int lane) {
        const u16* from = a.q + (i64)t.item.token * a.stride_q + (t.head * GROUP + lane / 4) * HEAD + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < HEAD / 8; i++) words[i] = lane / 4 < GROUP ? load_word(from + i * 8) : 0;
    }
    DEVICE void turn_all(const Arguments& a) {
        if (!a.cos_sin) return;
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++) turn(words[i], words[i + HEAD / 16], cosine[i], sine[i]);
    }
};

// The row's newest key and value: lane i has numbers 2 i, 2 i + 1 and those HEAD / 2 further.
struct Newest {
    u32 key[2], value[2];
    float2 cosine, sine;
    i64 slot;

    DEVICE void load(const Arguments& a, const Task& t, int lane) {
        const float2* angles = reinterpret_cast<const float2*>(a.cos_sin + (i64)(t.item.seq_len - 1) * HEAD) + lane;
        const u16* k = a.k + (i64)t.item.token * a.stride_k + t.head * HEAD + lane * 2;
        const u16* v = a.v + (i64)t.item.token * a.stride_v + t.head * HEAD + lane * 2;
        if (lane >= HEAD / 4) return;
        cosine = __ldg(angles), sine = __ldg(angles + HEAD / 4);
        key[0] = load_word(k), key[1] = load_word(k + HEAD / 2), value[0] = load_word(v), value[1] = load_word(v + HEAD / 2);
        slot = __ldcg(a.slots + t.item.token);
    }
    // Into row `row` of a tile, and into the cache.
    DEVICE void put(const Arguments& a, const Task& t, u32 tile, int row, int lane) {
        if (lane >= HEAD / 4) return;
        turn(key[0], key[1], cosine, sine);
        u32* cached = reinterpret_cast<u32*>(a.kv + slot * STRIDE + t.head * HEAD) + lane;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 at = tile + in_tile(row, lane / 4 + i * (HEAD / 16)) + lane % 4 * 4;
            store_word(at, key[i]), store_word(at + HALF_BYTES, value[i]);
            if (slot >= 0) cached[i * (HEAD / 4)] = key[i], cached[i * (HEAD / 4) + a.to_values / 2] = value[i];
        }
    }
};

// A warp's online softmax: a lane has heads 2 (lane % 4) and the next, numbers lane / 4 of each eight.
struct Sums {
    float acc[HEAD / 16][4] = {}, peak[2] = {NOTHING, NOTHING}, total[2] = {};

    // Tiles at shared addresses `tiles`; this lane's keys of tile t are those at 16 KEY_WARPS t and 8 further, of which `count` are there.
    DEVICE void add(const u32 (&tiles)[CHUNK], const Queries& queries, int count, float scale, int lane) {
        uint4 loaded[CHUNK][HEAD / 16];  // many at a time, for products wait long for each
        float s[CHUNK][4] = {};
#pragma unroll
        for (int t = 0; t < CHUNK; t++)
#pragma unroll
            for (int k = 0; k < HEAD / 16; k++) loaded[t][k] = load_matrix((tiles[t] + in_tile(lane % 16, lane / 16)) ^ k * 32);
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++)
#pragma unroll
            for (int t = 0; t < CHUNK; t++) multiply(s[t], loaded[t][k], queries.words[2 * k], queries.words[2 * k + 1]);
#pragma unroll
        for (int t = 0; t < CHUNK; t++)
#pragma unroll
            for (int d = 0; d < HEAD / 16; d++)
                loaded[t][d] = load_matrix_transposed((tiles[t] + HALF_BYTES + in_tile(lane % 8 + lane / 16 * 8, lane / 8 % 2)) ^ d * 32);
        float top[2] = {peak[0], peak[1]};
#pragma unroll
        for (int t = 0; t < CHUNK; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[t][i] = 16 * KEY_WARPS * t + i / 2 * 8 < count ? s[t][i] * scale : NOTHING;
                top[i % 2] = fmaxf(top[i % 2], s[t][i]);
            }
        float shrink[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2) top[e] = fmaxf(top[e], __shfl_xor_sync(~0u, top[e], step));
            shrink[e] = exp2_fast(peak[e] - top[e]);
            peak[e] = top[e];
            total[e] *= shrink[e];
        }
        u32 weights[CHUNK][2];
#pragma unroll
        for (int t = 0; t < CHUNK; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[t][i] = exp2_fast(s[t][i] - peak[i % 2]);
                total[i % 2] += s[t][i];
            }
            weights[t][0] = transposed(pack(s[t][0], s[t][1])), weights[t][1] = transposed(pack(s[t][2], s[t][3]));
        }
#pragma unroll
        for (int d = 0; d < HEAD / 16; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[d][i] *= shrink[i % 2];
#pragma unroll
        for (int t = 0; t < CHUNK; t++)
#pragma unroll
            for (int d = 0; d < HEAD / 16; d++) multiply(acc[d], loaded[t][d], weights[t][0], weights[t][1]);
    }
    // To `share`: sums of each head, LD apart; then peaks and totals.
    DEVICE void write(float* share, int lane) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2) total[e] += __shfl_xor_sync(~0u, total[e], step);
            const int head = lane % 4 * 2 + e;
            if (head >= GROUP) continue;
#pragma unroll
            for (int d = 0; d < HEAD / 16; d++)
#pragma unroll
                for (int half = 0; half < 2; half++) share[head * LD + d * 16 + half * 8 + lane / 4] = acc[d][half * 2 + e];
            if (lane < 4) share[GROUP * LD + head * 2] = peak[e], share[GROUP * LD + head * 2 + 1] = total[e];
        }
    }
};

// Numbers d to d + 3 of the program's query head `head`.
DEVICE void store_out(const Arguments& a, const Task& t, int head, int d, const float (&x)[4], float factor) {
    u16* to = a.out + ((i64)t.item.token * Q_HEADS + t.first * GROUP + head) * HEAD + d;
    *reinterpret_cast<uint2*>(to) = make_uint2(pack(x[0] * factor, x[1] * factor), pack(x[2] * factor, x[3] * factor));
}
DEVICE i64 place_of(const Arguments& a, const Task& t, int head) { return ((i64)t.item.row * Q_HEADS + t.first * GROUP + head) * a.most_splits; }

// The warps' sums of an item, weighed: to `out`, or beside those of the row's other splits.
DEVICE void join_warps(const Arguments& a, const Task& t, const float* shares) {
    for (int i = threadIdx.x; i < HEADS * GROUP * HEAD / 4; i += THREADS) {
        const int head = i / (HEAD / 4), d = i % (HEAD / 4) * 4;
        const float* from = shares + head / GROUP * KEY_WARPS * SHARE_FLOATS + head % GROUP * LD + d;
        const float* stats = shares + head / GROUP * KEY_WARPS * SHARE_FLOATS + GROUP * LD + head % GROUP * 2;
        float peak = NOTHING, total = 0, sums[4] = {};
#pragma unroll
        for (int w = 0; w < KEY_WARPS; w++) peak = fmaxf(peak, stats[w * SHARE_FLOATS]);
#pragma unroll
        for (int w = 0; w < KEY_WARPS; w++) {
            const float weight = exp2_fast(stats[w * SHARE_FLOATS] - peak);
            const float4 x = *reinterpret_cast<const float4*>(from + w * SHARE_FLOATS);
            total += stats[w * SHARE_FLOATS + 1] * weight;
            sums[0] += x.x * weight, sums[1] += x.y * weight, sums[2] += x.z * weight, sums[3] += x.w * weight;
        }
        if (t.item.num_splits == 1) {
            if (t.item.seq_len == 0) sums[0] = sums[1] = sums[2] = sums[3] = 0, total = 1;
            store_out(a, t, head, d, sums, 1.0f / total);
            continue;
        }
        const i64 place = place_of(a, t, head) + t.item.split;
        const float factor = 1.0f / total;
        *reinterpret_cast<float4*>(a.partial + place * HEAD + d) = make_float4(sums[0] * factor, sums[1] * factor, sums[2] * factor, sums[3] * factor);
        if (d == 0) a.lse[place] = peak + __log2f(total);
    }
}

// The splits of a row and its heads, weighed in order.
DEVICE void join_splits(const Arguments& a, const Task& t) {
    for (int i = threadIdx.x; i < HEADS * GROUP * HEAD / 4; i += THREADS) {
        const int head = i / (HEAD / 4), d = i % (HEAD / 4) * 4;
        const i64 place = place_of(a, t, head);
        float peak = NOTHING, total = 0, sums[4] = {};
#pragma unroll 4
        for (int s = 0; s < t.item.num_splits; s++) peak = fmaxf(peak, __ldcg(a.lse + place + s));
#pragma unroll 4
        for (int s = 0; s < t.item.num_splits; s++) {
            const float weight = exp2_fast(__ldcg(a.lse + place + s) - peak);
            const float4 x = __ldcg(reinterpret_cast<const float4*>(a.partial + (place + s) * HEAD + d));
            total += weight;
            sums[0] += x.x * weight, sums[1] += x.y * weight, sums[2] += x.z * weight, sums[3] += x.w * weight;
        }
        store_out(a, t, head, d, sums, 1.0f / total);
    }
}

// Whether this program's split was the row's last to be done, for its threads; what the others wrote is then seen.
DEVICE bool is_last(const Arguments& a, const Task& t, volatile u32* flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        u32* counter = a.arrived + t.item.row * PARTS + t.first / HEADS;
        const bool last = atomicAdd(counter, 1u) == (u32)t.item.num_splits - 1;
        if (last) *counter = 0;
        *flag = last;
        __threadfence();
    }
    __syncthreads();
    return *flag;
}

extern "C" __global__ void __launch_bounds__(THREADS, PER_PROCESSOR) split_attention(const __grid_constant__ Arguments a) {
    unsigned char* shared = dynamic_shared();
    float* shares = reinterpret_cast<float*>(shared + WARPS * RING_BYTES);
    volatile u32* flag = reinterpret_cast<u32*>(shared + SHARED_BYTES - 16);
    const int own = __shfl_sync(~0u, threadIdx.x / 32, 0), warp = own % KEY_WARPS, lane = threadIdx.x % 32;
    const u32 ring = smem_address(shared) + own * RING_BYTES;

    if (!a.early) wait_for_previous();
    const int num_tasks = __ldcg(&a.plan->num_items) * PARTS;
    Loader loader(a, num_tasks, ring, warp, lane);
    for (int i = 0; i < STAGES; i++) loader.ask(a);
    Tasks tasks(a, num_tasks);
    Task task, later;
    bool is_active = tasks.next(a, task);
    Queries queries, later_queries;
    if (is_active) later_queries.load_angles(a, task, lane);
    if (a.early) wait_for_previous();
    let_next_start();
    if (is_active) later_queries.load(a, task, lane);

    u32 slot = 0;
    for (; is_active; task = later) {
        const int num_tiles = task.num_tiles();
        const bool puts_newest = task.has_newest(a) && (num_tiles - 1) % KEY_WARPS == warp;
        Newest newest;
        if (puts_newest) newest.load(a, task, lane);
        queries = later_queries;
        is_active = tasks.next(a, later);
        if (is_active) later_queries.load_angles(a, later, lane), later_queries.load(a, later, lane);
        queries.turn_all(a);
        Sums sums;
        for (int tile = warp; tile < num_tiles; tile += CHUNK * KEY_WARPS) {
            const int num_mine = min(CHUNK, (num_tiles - tile + KEY_WARPS - 1) / KEY_WARPS);
            u32 tiles[CHUNK];
#pragma unroll
            for (int t = 0; t < CHUNK; t++) {  // what is not there is the first once more, of no weight
                tiles[t] = t < num_mine ? ring + slot * SLOT_BYTES : tiles[0];
                if (t < num_mine) slot = slot + 1 == STAGES ? 0 : slot + 1;
            }
            loader.wait();
            if (puts_newest && tile + num_mine * KEY_WARPS >= num_tiles) {
                newest.put(a, task, ring + (slot ? slot - 1 : STAGES - 1) * SLOT_BYTES, (task.item.seq_len - 1) % TILE, lane);
                __syncwarp();
            }
            sums.add(tiles, queries, task.item.end - task.item.begin - tile * TILE - lane / 4, a.scale, lane);
            __syncwarp();
            for (int t = 0; t < num_mine && !loader.is_done; t++) loader.ask(a);
        }
        __syncthreads();  // all have read what the item before left here
        sums.write(shares + own * SHARE_FLOATS, lane);
        __syncthreads();
        join_warps(a, task, shares);
        if (task.item.num_splits > 1 && is_last(a, task, flag)) join_splits(a, task);
    }
}
