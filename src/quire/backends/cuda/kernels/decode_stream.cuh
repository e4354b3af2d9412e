// The warp that copies weights and cached keys to the ring.
#pragma once
#include "decode_layout.cuh"

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
                } else {  // values that will be multiplied by weights of zero must be numbers
                    store_shared(target + KEYS * KEY_BYTES, 0, 0);
                    store_shared(target + KEYS * KEY_BYTES + 8, 0, 0);
                }
            }
            fence_async_proxy();
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
