// out[r, n] = sum over k of x[r, k] * weight[n, k] (+ bias[n]), for tens to a thousand rows: the weight is read at the memory's pace.
//
// A program takes a tile of 64 * WGS * MB rows and BN columns. One thread of its last warp asks the copy engine for tiles of x and of the
// weight, STAGES deep; WGS warpgroups multiply them, MB blocks of 64 rows each. What weights fit is asked for before the kernel ahead has
// ended. SPLIT programs, a cluster, share a tile's k; each finishes its part of the rows from all their sums, always in the same order.
// SHARE programs with neighbouring columns, of one cluster, each ask for a part of x and get all of it.
// Grid (row tiles, programs along the columns, SPLIT); without a split a program takes every gridDim.y-th tile.
//
// GATED   weight has 2 * out_size rows, and out = round(silu(round(gate))) * round(up); a tile is BN / 2 columns of each
// GREEDY  nothing is stored but the largest of the rounded results of each program's columns, NaN if one is not finite, and where it is
// NORMED  rows of x are still to be divided by their root mean squares: `squares` [parts, rows] add up to the sums of squares, and results are divided
// ADD     residual += the results, out = residual * gains, and `squares_out` [n_tiles, rows] gets the tile's part of the sums of squares of residual
// BIAS    whether there is one
// F16     float16 in place of bfloat16
//
// Sources: PTX ISA, sections on wgmma, cp.async.bulk.tensor, st.async and griddepcontrol.
#include "wgmma.cuh"

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

constexpr int BM = 64 * WGS * MB;
constexpr int BK = 64;
constexpr int CONSUMERS = 128 * WGS;
constexpr bool TRADE = MB > 1;  // long accumulators need registers that the producer gives away
constexpr int THREADS = CONSUMERS + (TRADE ? 128 : NORMED ? 64 : 32);
constexpr int X_BYTES = BM * BK * 2;
constexpr int W_BYTES = BN * BK * 2;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int OUTS = GATED ? BN / 2 : BN;
constexpr int PART_ROWS = BM / SPLIT;  // rows of a tile that one program of a cluster finishes
constexpr int LD = BN + (40 - BN % 32) % 32;  // floats a row of sums received: rows begin 8 banks apart
constexpr int PIPE_BYTES = STAGES * STAGE_BYTES;
static_assert(SHARE == 1 || !GREEDY, "programs that share x take one tile each");
constexpr u64 EVICT_FIRST = 0x12F0000000000000ull;
constexpr u64 EVICT_LAST = 0x14F0000000000000ull;

struct __align__(64) TensorMap {
    char bytes[128];
};

__device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// At a barrier of any program of the cluster. No scope: what was read here are matrices, by instructions that are through.
__device__ __forceinline__ void barrier_arrive_at(u32 cluster_address) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 bar, u32 parity) {
    asm volatile(
        "{ .reg .pred done, late; .reg .u32 tries; mov.u32 tries, 0;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra ready;\n"
        "add.u32 tries, tries, 1; setp.gt.u32 late, tries, 0x1000000; @late trap; bra again;\n"
        "ready: }" ::"r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void load_tile(u32 target, const TensorMap* map, u32 bar, int column, int row, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;"
        ::"r"(target), "l"(map), "r"(bar), "r"(column), "r"(row), "l"(policy) : "memory");
}
// The same for every program of the cluster that `mask` names, at the same place.
__device__ __forceinline__ void load_shared_tile(u32 target, const TensorMap* map, u32 bar, int column, int row, u64 policy, u16 mask) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;"
        ::"r"(target), "l"(map), "r"(bar), "r"(column), "r"(row), "h"(mask), "l"(policy) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map)); }
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
// A matrix of the tensor core: rows of 128 bytes, swizzled, in groups of 8 rows of 1024 bytes. In units of 16 bytes.
__device__ __forceinline__ u32 matrix(u32 address) { return address >> 4 | 0x10000; }
__device__ __forceinline__ u64 descriptor(u32 low) {
    u64 d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "n"(0x40000040));
    return d;
}
#if F16
#define WGMMA_TYPES "f32.f16.f16"
#else
#define WGMMA_TYPES "f32.bf16.bf16"
#endif
#define WGMMA_TEXT(n) WGMMA_TEXT_(n)
#define WGMMA_TEXT_(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16." WGMMA_TYPES
// acc (+)= 64 rows times BN columns, 16 deep; done when the group it is committed to is.
__device__ __forceinline__ void multiply(float (&acc)[BN / 2], u64 a, u64 b, u32 add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; " WGMMA_TEXT(BN) " {" WGMMA_REGISTERS(BN8) "}, %0, %1, p, 1, 1, 0, 0; }"
                 : "+l"(a), "+l"(b), "+r"(add), WGMMA_OPERANDS(BN8));
}
// Nothing that reads the sums is moved to before here.
__device__ __forceinline__ void hold(float (&acc)[BN / 2]) { asm volatile("" : WGMMA_OPERANDS(BN8)::"memory"); }
__device__ __forceinline__ u32 at_rank(u32 address, u32 rank) {
    u32 a;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(address), "r"(rank));
    return a;
}
// Two floats to another program of the cluster; its barrier counts the bytes as they arrive.
__device__ __forceinline__ void send(u32 address, float a, float b, u32 bar) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
                 ::"r"(address), "f"(a), "f"(b), "r"(bar) : "memory");
}
// Bytes of this program's shared memory to another's, in one piece; its barrier counts them.
__device__ __forceinline__ void send_bulk(u32 target, u32 source, u32 bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(target), "r"(source), "r"(bytes), "r"(bar) : "memory");
}
__device__ __forceinline__ void store_shared(u32 address, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ void add_shared(float4& sum, u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
}
__device__ __forceinline__ void store_shared(u32 address, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory"); }
__device__ __forceinline__ float load_shared(u32 address) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
    return v;
}
// Waits for `threads` threads at one of the program's named barriers.
__device__ __forceinline__ void meet(int name, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory"); }
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 d;
#if F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#endif
    return d;
}
__device__ __forceinline__ float2 unpack(u32 d) {
    float2 v;
#if F16
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(v.x), "=f"(v.y) : "r"(d));
#else
    v.x = __uint_as_float(d << 16);
    v.y = __uint_as_float(d & 0xFFFF0000u);
#endif
    return v;
}
__device__ __forceinline__ float silu(float x) {
    float y;
    asm("{ .reg .f32 t; mul.ftz.f32 t, %1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.ftz.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 t, t; mul.ftz.f32 %0, %1, t; }" : "=f"(y) : "f"(x));
    return y;
}
// Two products of 16-bit numbers, rounded once.
__device__ __forceinline__ u32 multiply_pairs(u32 a, u32 b) {
    u32 d;
#if F16
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#else
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#endif
    return d;
}

__device__ __forceinline__ u32 load_constant(const u16* p) {
    u32 v;
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
// Two neighbouring results as they are stored; `up` only where GATED. 
__device__ __forceinline__ u32 finish(float2 v, float2 up, u32 bias, u32 up_bias) {
    if (BIAS) {
        const float2 b = unpack(bias);
        v.x += b.x, v.y += b.y;
        if (GATED) {
            const float2 c = unpack(up_bias);
            up.x += c.x, up.y += c.y;
        }
    }
    u32 out = pack(v.x, v.y);
    if (GATED) {
        const float2 g = unpack(out);
        out = multiply_pairs(pack(silu(g.x), silu(g.y)), pack(up.x, up.y));
    }
    return out;
}

// The same where the results are added to `residual`, which stays rounded; the sum's squares go to `squares`, and its product with the gains is returned.
__device__ __forceinline__ u32 add(float2 v, u32 bias, u32 gain, u32* residual, u32 old, float& squares) {
    const float2 b = unpack(bias), r = unpack(old), g = unpack(gain);
    if (BIAS) v.x += b.x, v.y += b.y;
    const u32 sum = pack(r.x + v.x, r.y + v.y);
    *residual = sum;
    const float2 s = unpack(sum);
    squares += s.x * s.x + s.y * s.y;
    return pack(s.x * g.x, s.y * g.y);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
        const u16* bias, u16* out, float* best_value, int* best_index,
        int rows, int out_size, int k_tiles, int n_tiles,
        const float* squares, int num_parts, float inverse_size, float eps, u16* residual, const u16* gains, float* squares_out) {
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ __align__(8) u64 barriers[2 * STAGES + 1];
#if NORMED
    __shared__ float scales[BM];  // of each row, one over its root mean square
#endif
    const u32 base = ((u32)__cvta_generic_to_shared(dynamic) + 1023) & ~1023u;
    const u32 full = (u32)__cvta_generic_to_shared(barriers), empty = full + 8 * STAGES, received = empty + 8 * STAGES;
    const int thread = threadIdx.x, warp = __shfl_sync(0xFFFFFFFFu, thread / 32, 0), lane = thread % 32;
    const int row0 = blockIdx.x * BM;
    const int split = SPLIT > 1 ? blockIdx.z : 0;
    const int k_begin = k_tiles * split / SPLIT, k_end = k_tiles * (split + 1) / SPLIT;

    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, WGS * SHARE);
        }
        if (SPLIT > 1) {
            barrier_init(received, 1);
            barrier_expect(received, BULK ? (SPLIT - 1) * PART_ROWS * LD * 4 : SPLIT * PART_ROWS * BN * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    if (SPLIT * SHARE > 1) cluster_sync();  // also: no program sends before the others' barriers are there
    else __syncthreads();
    let_next_start();

    const int part = SHARE > 1 ? blockIdx.y % SHARE : 0, rank0 = SHARE * split;  // of the programs with this share of k
    const auto load_x = [&](int stage, int k) {
        const u32 bar = full + 8 * stage, target = base + stage * STAGE_BYTES;
        if (SHARE == 1) load_tile(target, &x_map, bar, k * BK, row0, EVICT_LAST);
        else load_shared_tile(target + part * (X_BYTES / SHARE), &x_map, bar, k * BK, row0 + part * (BM / SHARE), EVICT_LAST, (u16)(((1 << SHARE) - 1) << rank0));
    };
    const auto load_weights = [&](int stage, int k, int tile) {
        const u32 bar = full + 8 * stage, target = base + stage * STAGE_BYTES + X_BYTES;
        barrier_expect(bar, STAGE_BYTES);
        load_tile(target, &w_map, bar, k * BK, tile * OUTS, EVICT_FIRST);
        if (GATED) load_tile(target + W_BYTES / 2, &w_map, bar, k * BK, out_size + tile * OUTS, EVICT_FIRST);
    };

    if (warp >= WGS * 4) {
        if (TRADE) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (warp == WGS * 4 && lane == 0) {
            const int first = (int)blockIdx.y;
            prefetch_map(&x_map);
            int ahead = 0;  // loads whose weights were asked for before the wait
            for (int k = k_begin; k < k_end && ahead < STAGES; k++, ahead++) load_weights(ahead, k, first);
            wait_for_previous();
            int stage = 0;
            u32 parity = 1;
            for (int tile = first; tile < n_tiles; tile += gridDim.y) {
                for (int k = k_begin; k < k_end; k++) {
                    if (ahead > 0) {
                        ahead--;
                    } else {
                        barrier_wait(empty + 8 * stage, parity);
                        load_weights(stage, k, tile);
                    }
                    load_x(stage, k);
                    if (++stage == STAGES) stage = 0, parity ^= 1;
                }
            }
        }
#if NORMED
        if (warp == WGS * 4 + 1) {
            wait_for_previous();
            float sums[BM / 32] = {};
#pragma unroll 4
            for (int p = 0; p < num_parts; p++)
#pragma unroll
                for (int i = 0; i < BM / 32; i++) sums[i] += squares[p * rows + min(row0 + lane + 32 * i, rows - 1)];
#pragma unroll
            for (int i = 0; i < BM / 32; i++) scales[lane + 32 * i] = rsqrtf(sums[i] * inverse_size + eps);
            asm volatile("bar.arrive 1, %0;" ::"n"(CONSUMERS + 32) : "memory");
        }
#endif
    } else {
        if (TRADE) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        wait_for_previous();
        const int group = warp / 4;
        const int row = group * 64 * MB + (warp % 4) * 16 + lane / 4;
        const auto release = [&](u32 bar) {
            if (SHARE == 1 && thread % 128 == 0) barrier_arrive(bar);
            if (SHARE > 1 && thread % 128 < SHARE) barrier_arrive_at(at_rank(bar, rank0 + thread % 128));
        };
        int stage = 0;
        u32 parity = 0, last = empty;
        const u32 x0 = matrix(base + group * (MB * 64 * BK * 2)), w0 = matrix(base + X_BYTES);
#if GREEDY
        float top[2 * MB], strange[2 * MB];
        int top_at[2 * MB];
#pragma unroll
        for (int i = 0; i < 2 * MB; i++) top[i] = -__int_as_float(0x7f800000), strange[i] = 0.0f, top_at[i] = 0;
#endif
        for (int tile = blockIdx.y; tile < n_tiles; tile += gridDim.y) {
            float acc[MB][BN / 2];
            for (int k = k_begin; k < k_end; k++) {
                barrier_wait(full + 8 * stage, parity);
                const u32 x = x0 + stage * (STAGE_BYTES / 16), w = w0 + stage * (STAGE_BYTES / 16);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int i = 0; i < BK / 16; i++)
#pragma unroll
                    for (int b = 0; b < MB; b++)
                        multiply(acc[b], descriptor(x + b * (64 * BK * 2 / 16) + 2 * i), descriptor(w + 2 * i), k > k_begin || i > 0);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (k > k_begin) release(last);
                last = empty + 8 * stage;
                if (++stage == STAGES) stage = 0, parity ^= 1;
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
            for (int b = 0; b < MB; b++) hold(acc[b]);
            release(last);
            if (SHARE > 1 && !(SPLIT > 1 && BULK)) cluster_arrive();

            const int column0 = tile * OUTS + 2 * (lane % 4);
            if (SPLIT > 1 && BULK) {
                meet(3, CONSUMERS);  // sums go where tiles were
#pragma unroll
                for (int b = 0; b < 2 * MB; b++) {
                    const u32 place = base + 4 * ((row + b / 2 * 64 + b % 2 * 8) * LD + 2 * (lane % 4));
#pragma unroll
                    for (int j = 0; j < BN / 8; j++) store_shared(place + 32 * j, acc[b / 2][4 * j + b % 2 * 2], acc[b / 2][4 * j + b % 2 * 2 + 1]);
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                meet(3, CONSUMERS);
                if (thread < SPLIT && thread != split)
                    send_bulk(at_rank(base + PIPE_BYTES + 4 * split * PART_ROWS * LD, thread * SHARE + part), base + 4 * thread * PART_ROWS * LD,
                              PART_ROWS * LD * 4, at_rank(received, thread * SHARE + part));
            } else if (SPLIT > 1) {
#pragma unroll
                for (int b = 0; b < 2 * MB; b++) {
                    const int r = row + b / 2 * 64 + b % 2 * 8;
                    const u32 owner = r / PART_ROWS * SHARE + part;
                    const u32 place = base + PIPE_BYTES + 4 * ((split * PART_ROWS + r % PART_ROWS) * LD + 2 * (lane % 4));
                    const u32 there = at_rank(place, owner), bar = at_rank(received, owner);
#pragma unroll
                    for (int j = 0; j < BN / 8; j++) send(there + 32 * j, acc[b / 2][4 * j + b % 2 * 2], acc[b / 2][4 * j + b % 2 * 2 + 1], bar);
                }
            } else {
                float scale[2 * MB];
#pragma unroll
                for (int b = 0; b < 2 * MB; b++) scale[b] = 1.0f;
#if NORMED
                if (tile == blockIdx.y) meet(1, CONSUMERS + 32);
#pragma unroll
                for (int b = 0; b < 2 * MB; b++) scale[b] = scales[row + b / 2 * 64 + b % 2 * 8];
#endif
#if ADD
                float sums[2 * MB] = {};
#endif
                u32 biases[OUTS / 8], up_biases[OUTS / 8];
                if (BIAS) {
#pragma unroll
                    for (int j = 0; j < OUTS / 8; j++) {
                        const int column = min(column0 + 8 * j, out_size - 2);
                        biases[j] = load_constant(bias + column);
                        if (GATED) up_biases[j] = load_constant(bias + out_size + column);
                    }
                }
#pragma unroll
                for (int j = 0; j < OUTS / 8; j++) {
                    const int column = column0 + 8 * j;
                    if (column < out_size) {
#pragma unroll
                        for (int b = 0; b < 2 * MB; b++) {
                            const float* at = &acc[b / 2][4 * j + b % 2 * 2];
                            const float2 v = {at[0] * scale[b], at[1] * scale[b]};
                            float2 up = v;
                            if (GATED) up = {at[BN / 4] * scale[b], at[BN / 4 + 1] * scale[b]};
#if GREEDY
                            const float2 r = unpack(finish(v, up, biases[j], up_biases[j]));
                            strange[b] += r.x * 0.0f + r.y * 0.0f;
                            if (r.x > top[b]) top[b] = r.x, top_at[b] = column;
                            if (r.y > top[b]) top[b] = r.y, top_at[b] = column + 1;
#else
                            const int place_row = row0 + row + b / 2 * 64 + b % 2 * 8;
                            if (place_row < rows) {
                                const u64 place = (u64)place_row * out_size + column;
#if ADD
                                *(u32*)(out + place) = add(v, biases[j], load_constant(gains + column), (u32*)(residual + place), *(u32*)(residual + place), sums[b]);
#else
                                *(u32*)(out + place) = finish(v, up, biases[j], up_biases[j]);
#endif
                            }
#endif
                        }
                    }
                }
#if ADD
#pragma unroll
                for (int b = 0; b < 2 * MB; b++) {
                    sums[b] += __shfl_xor_sync(0xFFFFFFFFu, sums[b], 1);
                    sums[b] += __shfl_xor_sync(0xFFFFFFFFu, sums[b], 2);
                    const int place_row = row0 + row + b / 2 * 64 + b % 2 * 8;
                    if (lane % 4 == 0 && place_row < rows) squares_out[(u64)tile * rows + place_row] = sums[b];
                }
#endif
            }
        }
#if GREEDY
#pragma unroll
        for (int b = 0; b < 2 * MB; b++) {
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                const float other = __shfl_xor_sync(0xFFFFFFFFu, top[b], step);
                const int other_at = __shfl_xor_sync(0xFFFFFFFFu, top_at[b], step);
                strange[b] += __shfl_xor_sync(0xFFFFFFFFu, strange[b], step);
                if (other > top[b] || (other == top[b] && other_at < top_at[b])) top[b] = other, top_at[b] = other_at;
            }
            if (lane % 4 == 0 && row0 + row + b / 2 * 64 + b % 2 * 8 < rows) {
                const u64 place = (u64)(row0 + row + b / 2 * 64 + b % 2 * 8) * gridDim.y + blockIdx.y;
                best_value[place] = top[b] + strange[b];
                best_index[place] = top_at[b];
            }
        }
#endif
#if SPLIT > 1
        {
            constexpr int CHUNKS = OUTS / 4, TURNS = (PART_ROWS * CHUNKS + CONSUMERS - 1) / CONSUMERS;
            const int part0 = row0 + split * PART_ROWS, tile = blockIdx.y;
            uint2 biases[TURNS], up_biases[TURNS];
#if ADD
            uint2 olds[TURNS], gain[TURNS];
#endif
#pragma unroll
            for (int t = 0; t < TURNS; t++) {
                const int i = thread + t * CONSUMERS, column = min(tile * OUTS + (i % CHUNKS) * 4, out_size - 4);
#if ADD
                gain[t] = {load_constant(gains + column), load_constant(gains + column + 2)};
                olds[t] = *(const uint2*)(residual + (u64)min(part0 + i / CHUNKS, rows - 1) * out_size + column);
#endif
                if (BIAS) {
                    biases[t] = {load_constant(bias + column), load_constant(bias + column + 2)};
                    if (GATED) up_biases[t] = {load_constant(bias + out_size + column), load_constant(bias + out_size + column + 2)};
                }
            }
            barrier_wait(received, 0);
            if (BULK) cluster_arrive();
#if NORMED
            meet(1, CONSUMERS + 32);
#endif
#pragma unroll
            for (int t = 0; t < TURNS; t++) {
                const int i = thread + t * CONSUMERS, r = i / CHUNKS, c = (i % CHUNKS) * 4, column = tile * OUTS + c;
                if (r >= PART_ROWS || part0 + r >= rows || column >= out_size) continue;
                float4 v = {0, 0, 0, 0}, up = v;
#pragma unroll
                for (int s = 0; s < SPLIT; s++) {
                    const u32 place = base + (BULK && s == split ? 0 : PIPE_BYTES) + 4 * ((s * PART_ROWS + r) * LD + c);
                    add_shared(v, place);
                    if (GATED) add_shared(up, place + 4 * OUTS);
                }
#if NORMED
                const float scale = scales[split * PART_ROWS + r];
                v.x *= scale, v.y *= scale, v.z *= scale, v.w *= scale;
                up.x *= scale, up.y *= scale, up.z *= scale, up.w *= scale;
#endif
                const u64 at = (u64)(part0 + r) * out_size + column;
                uint2 result;
#if ADD
                float sum = 0.0f;
                result.x = add({v.x, v.y}, biases[t].x, gain[t].x, (u32*)(residual + at), olds[t].x, sum);
                result.y = add({v.z, v.w}, biases[t].y, gain[t].y, (u32*)(residual + at + 2), olds[t].y, sum);
                store_shared(base + (BULK && split == 0 ? 0 : PIPE_BYTES) + 4 * (r * LD + c), sum);  // where nobody reads any more
#else
                result.x = finish({v.x, v.y}, {up.x, up.y}, biases[t].x, up_biases[t].x);
                result.y = finish({v.z, v.w}, {up.z, up.w}, biases[t].y, up_biases[t].y);
#endif
                *(uint2*)(out + at) = result;
            }
#if ADD
            meet(2, CONSUMERS);
            if (thread < PART_ROWS && part0 + thread < rows) {
                float sum = 0.0f;
#pragma unroll
                for (int c = 0; c < OUTS; c += 4) {
                    const float square = load_shared(base + (BULK && split == 0 ? 0 : PIPE_BYTES) + 4 * (thread * LD + c));
                    if (tile * OUTS + c < out_size) sum += square;
                }
                squares_out[(u64)tile * rows + part0 + thread] = sum;
            }
#endif
        }
#endif
        if (SHARE > 1 || (SPLIT > 1 && BULK)) cluster_wait();  // what was sent has left this memory; nobody releases tiles here any more
    }
}
