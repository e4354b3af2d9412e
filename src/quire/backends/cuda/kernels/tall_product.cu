// out = round(silu(round(gate))) * round(up), gate and up the halves of x @ weight^T (+ bias), for a thousand rows or more: bound by the
// matrix units and by the energy that feeds them.
//
// A persistent program takes tiles of BM = 64 * GROUPS rows and BN / 2 columns of gate and of up one after another. One thread of its
// first warpgroup asks the copy engine for tiles of x and of the weight, STAGES deep, over the ends of tiles; GROUPS warpgroups multiply,
// 64 rows each. CLUSTER programs, one below another, share each tile of the weight: each asks for its part, for all of them. Results leave
// through shared memory, 64 columns at a time. Tiles come in bands of BAND clusters' rows, so that what the device reads at a time stays in
// its L2.
//
// BIAS    whether there is one
// F16     float16 in place of bfloat16
//
// Sources: PTX ISA, sections on wgmma, cp.async.bulk.tensor (multicast), mbarrier, stmatrix and griddepcontrol.
#include "wgmma.cuh"

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
#define DEVICE __device__ __forceinline__

constexpr int BM = 64 * GROUPS, BK = 64, THREADS = 128 * (GROUPS + 1);
constexpr int OUTS = BN / 2;  // columns of a tile's results
constexpr int PARTS = CLUSTER > 2 ? CLUSTER : 2, PART = BN / PARTS;  // pieces in which a tile of the weight comes, and their rows
constexpr int X_BYTES = BM * 128, W_BYTES = BN * 128, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int BUFFER_BYTES = 64 * 64 * 2, BUFFERS = 2;  // of a warpgroup: 64 columns of its rows on their way, and how many times
constexpr u32 STORES = STAGES * STAGE_BYTES, FULL = STORES + GROUPS * BUFFERS * BUFFER_BYTES, EMPTY = FULL + 8 * STAGES;
constexpr int LOADING_REGISTERS = 40, MULTIPLYING_REGISTERS = 232;  // 64 Ki in all
constexpr u64 EVICT_FIRST = 0x12F0000000000000ull;
static_assert(EMPTY + 8 * STAGES == SHARED_BYTES && OUTS % 64 == 0 && OUTS % PART == 0);

struct alignas(64) TensorMap {
    char bytes[128];
};

DEVICE void barrier_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
DEVICE void barrier_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEVICE void arrive_at(u32 cluster_address) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}
DEVICE u32 at_rank(u32 address, u32 rank) {
    u32 a;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(address), "r"(rank));
    return a;
}
// No limit: a trap here would keep the compiler from giving the multiplying warps their registers.
DEVICE void barrier_wait(u32 bar, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra ready; bra again;\n"
        "ready: }" ::"r"(bar), "r"(parity) : "memory");
}
DEVICE void load_tile(u32 target, const TensorMap* map, u32 bar, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(target), "l"(map), "r"(bar), "r"(column), "r"(row) : "memory");
}
// To the same place of every program of the cluster; each one's barrier counts the bytes.
DEVICE void load_tile_for_all(u32 target, const TensorMap* map, u32 bar, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
        ::"r"(target), "l"(map), "r"(bar), "r"(column), "r"(row), "h"((u16)((1 << CLUSTER) - 1)) : "memory");
}
DEVICE void store_tile(u32 source, const TensorMap* map, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%1, {%2, %3}], [%0], %4;"
                 ::"r"(source), "l"(map), "r"(column), "r"(row), "l"(EVICT_FIRST) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until no more than PENDING stores of this thread are still to be read.
template <int PENDING>
DEVICE void stores_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map)); }
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void cluster_sync() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void meet(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A matrix of the tensor core: rows of 128 bytes, swizzled, in groups of 8 rows of 1024 bytes. In units of 16 bytes.
DEVICE u32 matrix(u32 address) { return address >> 4 | 0x10000; }
DEVICE u64 descriptor(u32 low) {
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
DEVICE void multiply(float (&acc)[BN / 2], u64 a, u64 b, u32 add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; " WGMMA_TEXT(BN) " {" WGMMA_REGISTERS(BN8) "}, %0, %1, p, 1, 1, 0, 0; }"
                 : "+l"(a), "+l"(b), "+r"(add), WGMMA_OPERANDS(BN8));
}
// Nothing that reads the sums is moved to before here.
DEVICE void hold(float (&acc)[BN / 2]) { asm volatile("" : WGMMA_OPERANDS(BN8)::"memory"); }

DEVICE u32 pack(float low, float high) {
    u32 d;
#if F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#endif
    return d;
}
DEVICE float2 unpack(u32 d) {
    float2 v;
#if F16
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(v.x), "=f"(v.y) : "r"(d));
#else
    v.x = __uint_as_float(d << 16);
    v.y = __uint_as_float(d & 0xFFFF0000u);
#endif
    return v;
}
DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
DEVICE float2 load_pair(const u16* p) {
    u32 v;
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(p));
    return unpack(v);
}

struct Sizes {
    int out_size, k_tiles, n_tiles, m_tiles;  // m_tiles: of whole clusters
};
// The tile at place `index` of the order.
DEVICE void find_tile(const Sizes& sizes, int index, int& m, int& n) {
    const int per_band = BAND * sizes.n_tiles, band = index / per_band, rest = index - band * per_band;
    const int height = min(BAND, sizes.m_tiles - band * BAND);
    n = rest / height;
    m = band * BAND + rest - n * height;
}

// The loading thread.
DEVICE void load(const TensorMap& x_map, const TensorMap& w_map, const Sizes& sizes, u32 base, int rank) {
    prefetch_map(&x_map);
    prefetch_map(&w_map);
    wait_for_previous();
    u32 stage = 0, parity = 1;
    for (int index = blockIdx.x / CLUSTER; index < sizes.m_tiles * sizes.n_tiles; index += gridDim.x / CLUSTER) {
        int m, n;
        find_tile(sizes, index, m, n);
        const int row = (m * CLUSTER + rank) * BM;
        const auto weight_row = [&](int part) {
            return n * OUTS + part * PART % OUTS + (part * PART / OUTS) * sizes.out_size;
        };
        const int own_row = weight_row(rank), other_row = weight_row(1);
        for (int k = 0; k < sizes.k_tiles; k++) {
            const u32 full = base + FULL + 8 * stage, target = base + stage * STAGE_BYTES;
            barrier_wait(base + EMPTY + 8 * stage, parity);
            barrier_expect(full, STAGE_BYTES);
            load_tile(target, &x_map, full, k * BK, row);
            if (CLUSTER > 1) {
                load_tile_for_all(target + X_BYTES + rank * (PART * 128), &w_map, full, k * BK, own_row);
            } else {
                load_tile(target + X_BYTES, &w_map, full, k * BK, own_row);
                load_tile(target + X_BYTES + PART * 128, &w_map, full, k * BK, other_row);
            }
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
    }
}

// Two neighbouring results of the columns from 8 j on; e = 0: of the thread's first row, 2: of its second.
DEVICE u32 finish(const float (&acc)[BN / 2], int j, int e, float2 bias, float2 up_bias) {
    const float* gate = &acc[4 * j + e];
    const float* up = &acc[4 * j + e + BN / 4];
    float2 g = {gate[0], gate[1]}, u = {up[0], up[1]};
    if (BIAS) g.x += bias.x, g.y += bias.y, u.x += up_bias.x, u.y += up_bias.y;
    g = unpack(pack(g.x, g.y));
    u = unpack(pack(u.x, u.y));
    const float2 a = unpack(pack(silu(g.x), silu(g.y)));
    return pack(a.x * u.x, a.y * u.y);
}

// Results of a warpgroup to `out`, by way of its buffers, which take turns.
DEVICE void store(const float (&acc)[BN / 2], const TensorMap& out_map, const u16* bias, const Sizes& sizes, u32 stores, int group, u32& turn,
                  int column0, int row) {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    const int line = thread / 32 * 16 + lane % 16, swizzle = line % 8;  // of the 16 bytes whose address this lane gives
#pragma unroll
    for (int chunk = 0; chunk < OUTS / 64; chunk++) {
        const u32 buffer = stores + turn * BUFFER_BYTES;
        if (thread == 0) stores_read<BUFFERS - 1>();
        meet(group);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = 8 * chunk + 2 * i;
            float2 biases[2] = {}, up_biases[2] = {};
            if (BIAS) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int column = min(column0 + 8 * (j + c) + 2 * (lane % 4), sizes.out_size - 2);
                    biases[c] = load_pair(bias + column);
                    up_biases[c] = load_pair(bias + sizes.out_size + column);
                }
            }
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                         ::"r"(buffer + line * 128 + (((2 * i + lane / 16) ^ swizzle) * 16)),
                         "r"(finish(acc, j, 0, biases[0], up_biases[0])), "r"(finish(acc, j, 2, biases[0], up_biases[0])),
                         "r"(finish(acc, j + 1, 0, biases[1], up_biases[1])), "r"(finish(acc, j + 1, 2, biases[1], up_biases[1])) : "memory");
        }
        fence_async();
        meet(group);
        if (thread == 0) store_tile(buffer, &out_map, column0 + 64 * chunk, row);
        turn = turn + 1 == BUFFERS ? 0 : turn + 1;
    }
}

DEVICE void multiply_all(const TensorMap& out_map, const u16* bias, const Sizes& sizes, u32 base, int group, int rank) {
    const int thread = threadIdx.x % 128;
    const u32 x0 = matrix(base + group * (64 * 128)), w0 = matrix(base + X_BYTES);
    const u32 stores = base + STORES + group * (BUFFERS * BUFFER_BYTES);
    const u32 empty = at_rank(base + EMPTY, thread % CLUSTER);  // one of the programs to be told that a stage may be filled
    u32 stage = 0, parity = 0, last = empty, turn = 0;
    const auto release = [&](u32 barrier) { if (thread < CLUSTER) arrive_at(barrier); };
    for (int index = blockIdx.x / CLUSTER; index < sizes.m_tiles * sizes.n_tiles; index += gridDim.x / CLUSTER) {
        float acc[BN / 2];
        for (int k = 0; k < sizes.k_tiles; k++) {
            const u32 x = x0 + stage * (STAGE_BYTES / 16), w = w0 + stage * (STAGE_BYTES / 16);
            barrier_wait(base + FULL + 8 * stage, parity);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < BK / 16; i++) multiply(acc, descriptor(x + 2 * i), descriptor(w + 2 * i), k > 0 || i > 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (k > 0) release(last);
            last = empty + 8 * stage;
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        hold(acc);
        release(last);
        int m, n;
        find_tile(sizes, index, m, n);
        store(acc, out_map, bias, sizes, stores, group, turn, n * OUTS, (m * CLUSTER + rank) * BM + 64 * group);
    }
    if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
tall_product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap out_map,
             const u16* bias, const __grid_constant__ Sizes sizes) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // the compiler then knows it to be the same in a warp
    const int rank = blockIdx.x % CLUSTER;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(base + FULL + 8 * i, 1);
            barrier_init(base + EMPTY + 8 * i, GROUPS * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (CLUSTER > 1) cluster_sync();  // no program sends before the others' barriers are there
    else __syncthreads();
    let_next_start();
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOADING_REGISTERS));
        if (threadIdx.x == 0) load(x_map, w_map, sizes, base, rank);
        __syncwarp();
        if (CLUSTER > 1) cluster_sync();  // none ends before the others have told it what they have read
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MULTIPLYING_REGISTERS));
        multiply_all(out_map, bias, sizes, base, warpgroup - 1, rank);
        if (CLUSTER > 1) cluster_sync();
    }
}
