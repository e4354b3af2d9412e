// Matrix products of a warpgroup (four warps): acc [64, N] fp32 += a [64, 16] . b [16, N], operands of 16 bits.
//
// A thread of lane l in warp w has of acc the rows 16 w + l / 4 and 8 further; of each 8 columns two, from 2 (l % 4) on:
// acc[4 j .. 4 j + 1] of the first row, acc[4 j + 2 .. 4 j + 3] of the second, columns 8 j + 2 (l % 4) .. + 1.
// Operands in shared memory are rows of 128 bytes in groups of 8, with the 128-byte swizzle of the copy engine.
// HALF is their PTX type, "bf16" or "f16".
#pragma once

typedef unsigned int u32;

constexpr u32 DESCRIPTOR_HIGH = (1024 >> 4) | (1u << 30);  // groups of 8 rows are 1024 bytes apart; 128-byte swizzle

// Low half of the descriptor of an operand at `address`; `leading_bytes` from 64 columns to the next 64, where columns are not the inner size.
__device__ __forceinline__ u32 descriptor(u32 address, u32 leading_bytes = 16) { return (address >> 4) | ((leading_bytes >> 4) << 16); }

#define ACC_4(i) "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3])
#define ACC_16(i) ACC_4(i), ACC_4(i + 4), ACC_4(i + 8), ACC_4(i + 12)
#define ACC_32 ACC_16(0), ACC_16(16)
#define ACC_64 ACC_16(0), ACC_16(16), ACC_16(32), ACC_16(48)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// a [64, 16] and b [128, 16], both in shared memory with the inner size contiguous; `add` = 0: acc is overwritten.
__device__ __forceinline__ void multiply(float (&acc)[64], u32 a, u32 b, int add) {
    asm volatile(
        "{ .reg .pred p; .reg .b64 a, b; setp.ne.b32 p, %66, 0; mov.b64 a, {%64, %67}; mov.b64 b, {%65, %67};"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." HALF "." HALF " {" NAMES_64 "}, a, b, p, 1, 1, 0, 0; }"
        : ACC_64 : "r"(a), "r"(b), "r"(add), "n"(DESCRIPTOR_HIGH));
}

// a [64, 16] in registers, laid out as acc is, rounded and packed in pairs; b [16, N] in shared memory with N contiguous.
__device__ __forceinline__ void multiply_add(float (&acc)[32], const u32* a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%36, %37};"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." HALF "." HALF " {" NAMES_32 "}, {%32, %33, %34, %35}, b, 1, 1, 1, 1; }"
        : ACC_32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(DESCRIPTOR_HIGH));
}
__device__ __forceinline__ void multiply_add(float (&acc)[64], const u32* a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%68, %69};"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." HALF "." HALF " {" NAMES_64 "}, {%64, %65, %66, %67}, b, 1, 1, 1, 1; }"
        : ACC_64 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(DESCRIPTOR_HIGH));
}

// Before products, after registers that they use were written.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until no more than PENDING groups are under way.
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving uses of registers over a wait.
template <int N>
__device__ __forceinline__ void pin(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
}
