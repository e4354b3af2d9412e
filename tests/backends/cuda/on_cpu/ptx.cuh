// CUDA C++ on the CPU, for tests: stands in for kernels/ptx.cuh. Threads of a program are fibers that take turns at barriers and at
// operations of a warp; programs run one after another. Kernels that use neither clusters nor asynchronous copies run so unchanged.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define DEVICE static inline
#define __device__
#define __noinline__ __attribute__((noinline))
#define __global__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 0
using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct Index { int x, y, z; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static Index threadIdx, blockIdx;

// Where threads wait for each other, and leave values for each other: twice, as one may be a round ahead.
struct Meeting {
    int size = 0, arrived = 0, round = 0;
    u64 values[2][1024];
};
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done;
};
static std::vector<Fiber> fibers;
static std::vector<Meeting> warps;
static Meeting block;
static ucontext_t scheduler;
static int current;

static void yield() { swapcontext(&fibers[current].context, &scheduler); }
// The values of all who come here, each at its place.
static const u64* meet(Meeting& m, int place, u64 value) {
    const int round = m.round;
    u64* values = m.values[round & 1];
    values[place] = value;
    if (++m.arrived == m.size) m.arrived = 0, m.round++;
    while (m.round == round) yield();
    return values;
}
static int lane() { return current % 32; }
static const u64* meet_warp(u64 value) { return meet(warps[current / 32], lane(), value); }
static void __syncthreads() { meet(block, current, 0); }
static int __syncthreads_or(int value) {
    const u64* all = meet(block, current, value != 0);
    return std::any_of(all, all + block.size, [](u64 v) { return v; });
}
static void __syncwarp() { meet_warp(0); }

template <class T> static u64 to_word(T v) { u64 w = 0; memcpy(&w, &v, sizeof v); return w; }
template <class T> static T from_word(u64 w) { T v; memcpy(&v, &w, sizeof v); return v; }
template <class T> static T __shfl_sync(u32, T v, int from) { return from_word<T>(meet_warp(to_word(v))[from]); }
template <class T> static T __shfl_xor_sync(u32, T v, int mask) { return from_word<T>(meet_warp(to_word(v))[lane() ^ mask]); }
template <class T> static T __shfl_up_sync(u32, T v, int by) { return from_word<T>(meet_warp(to_word(v))[lane() >= by ? lane() - by : lane()]); }
static u32 __reduce_add_sync(u32, u32 v) {
    const u64* all = meet_warp(v);
    u32 sum = 0;
    for (int i = 0; i < 32; i++) sum += (u32)all[i];
    return sum;
}
static u32 __reduce_max_sync(u32, u32 v) {
    const u64* all = meet_warp(v);
    return (u32)*std::max_element(all, all + 32);
}
static u32 __reduce_min_sync(u32, u32 v) {
    const u64* all = meet_warp(v);
    return (u32)*std::min_element(all, all + 32);
}
static int __syncthreads_count(int value) {
    const u64* all = meet(block, current, value != 0);
    return (int)std::count(all, all + block.size, 1);
}
static int __ffs(u32 v) { return __builtin_ffs((int)v); }
static int __ffsll(u64 v) { return __builtin_ffsll((i64)v); }
static u32 atomicMin(u32* target, u32 v) {
    const u32 before = *target;
    *target = min(before, v);
    return before;
}
static u32 atomicMax(u32* target, u32 v) {
    const u32 before = *target;
    *target = max(before, v);
    return before;
}
template <class T> static T atomicAdd(T* target, T v) { return (*target += v) - v; }

static u32 __float_as_uint(float v) { return (u32)to_word(v); }
static float __uint_as_float(u32 v) { return from_word<float>(v); }
static float __int_as_float(u32 v) { return from_word<float>(v); }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __double2float_rd(double v) {
    const float f = (float)v;
    return f > v ? std::nextafterf(f, -INFINITY) : f;
}
static float exp2_fast(float v) { return std::exp2f(v); }
static float from_bf16(u16 v) { return __uint_as_float((u32)v << 16); }
static float from_f16(u16 v) { return (float)from_word<_Float16>(v); }

// Runs a program's threads until all have ended, in an order that is another each time: what a barrier is missing for shows.
template <class F> static void run_program(int num_threads, F kernel) {
    static F* running;
    running = &kernel;
    if ((int)fibers.size() != num_threads) {
        fibers = std::vector<Fiber>(num_threads);
        warps.resize(num_threads / 32);
        for (Meeting& warp : warps) warp.size = 32;
        block.size = num_threads;
    }
    for (Fiber& fiber : fibers) {
        if (!fiber.stack) fiber.stack.reset(new char[1 << 16]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = 1 << 16;
        fiber.context.uc_link = &scheduler;
        fiber.done = false;
        makecontext(&fiber.context, +[] { (*running)(); fibers[current].done = true; }, 0);
    }
    static std::minstd_rand random;
    for (int left = num_threads; left > 0;) {
        const int first = (int)(random() % num_threads), stride = random() % 2 ? 1 : num_threads - 1;
        for (int i = 0; i < num_threads; i++) {
            current = (first + i * stride) % num_threads;
            if (fibers[current].done) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current].context);
            left -= fibers[current].done;
        }
    }
}
