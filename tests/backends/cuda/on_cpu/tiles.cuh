// Stands in for kernels/tiles.cuh, and for what of ptx.cuh goes with it. Copies are made when they are waited for, and no earlier.
#pragma once
#include <cstdlib>
#include <deque>

#include "ptx.cuh"

struct uint2 { u32 x, y; };
struct int4 { int x, y, z, w; };
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
// These under names of their own: ptx.cuh has what sampling needs of them.
#define make_float2 two_floats
#define make_float4 four_floats
#define atomicAdd add_at
static float2 two_floats(float x, float y) { return {x, y}; }
static float4 four_floats(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class T> static T add_at(T* target, T v) { return (*target += v) - v; }
template <class T> static T __ldcg(const T* p) { return *p; }
template <class T> static T __ldg(const T* p) { return *p; }
static void __threadfence() {}
#define __log2f std::log2f
static Index gridDim;

alignas(1024) static unsigned char memory[SHARED_BYTES];  // shared
static unsigned char* dynamic_shared() { return memory; }
static u32 smem_address(const void* p) { return (u32)((const unsigned char*)p - memory); }
static unsigned char* at(u32 address, u32 size) {
    if (address % size || address + size > sizeof memory) abort();
    return memory + address;
}
static void store_word(u32 address, u32 v) { memcpy(at(address, 4), &v, 4); }
static u32 load_word(const u16* p) {
    u32 v;
    memcpy(&v, p, 4);
    return v;
}

struct Copy { u32 target; const void* source; int num_bytes; };
static std::deque<std::vector<Copy>> copies[1024];  // groups of each thread, the last of which is open
template <int PENDING>
static void wait_for_copies() {
    auto& groups = copies[current];
    for (; (int)groups.size() > PENDING + 1; groups.pop_front())
        for (const Copy& c : groups.front()) {
            memset(at(c.target, 16), 0, 16);
            memcpy(at(c.target, 16), c.source, c.num_bytes);
        }
}
static void end_of_copies() { copies[current].emplace_back(); }
static void copy_or_clear(u32 target, const void* source, int num_bytes) {
    if ((uintptr_t)source % 16) abort();
    if (copies[current].empty()) copies[current].emplace_back();
    copies[current].back().push_back({target, source, num_bytes});
}

static u16 half_of(float v) {
    if (!IS_BF16) return (u16)to_word((_Float16)v);
    const u32 bits = __float_as_uint(v);
    return v != v ? 0x7fc0 : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float number(u16 v) { return IS_BF16 ? from_bf16(v) : from_f16(v); }
static u32 pack(float low, float high) { return half_of(low) | (u32)half_of(high) << 16; }
static float2 unpack(u32 v) { return {number((u16)v), number((u16)(v >> 16))}; }

// Matrices of 8 x 8: lane i has the numbers 2 (i % 4) and the next of row i / 4; lane 8 m + r tells where row r of matrix m lies.
static u16 matrix_at(const u64* addresses, int matrix, int row, int column) {
    u16 v;
    memcpy(&v, at((u32)addresses[8 * matrix + row], 16) + 2 * column, 2);
    return v;
}
static uint4 load_matrix(u32 address) {
    const u64* all = meet_warp(address);
    u32 v[4];
    for (int m = 0; m < 4; m++)
        v[m] = matrix_at(all, m, lane() / 4, lane() % 4 * 2) | (u32)matrix_at(all, m, lane() / 4, lane() % 4 * 2 + 1) << 16;
    return {v[0], v[1], v[2], v[3]};
}
static uint4 load_matrix_transposed(u32 address) {
    const u64* all = meet_warp(address);
    u32 v[4];
    for (int m = 0; m < 4; m++)
        v[m] = matrix_at(all, m, lane() % 4 * 2, lane() / 4) | (u32)matrix_at(all, m, lane() % 4 * 2 + 1, lane() / 4) << 16;
    return {v[0], v[1], v[2], v[3]};
}
static u32 transposed(u32 v) {
    const u64* all = meet_warp(v);
    u32 turned = 0;
    for (int i = 0; i < 2; i++) turned |= ((u32)all[(lane() % 4 * 2 + i) * 4 + lane() / 8] >> (lane() / 4 % 2 * 16) & 0xffff) << 16 * i;
    return turned;
}
static void multiply(float (&acc)[4], uint4 a, u32 b0, u32 b1) {
    const int group = lane() / 4, place = lane() % 4;
    const auto halves = [](const u64* all, int row, int i) { return number((u16)(all[row * 4 + i % 8 / 2] >> i % 2 * 16)); };
    float wide[2][16], deep[16][2];  // rows group and group + 8 of a; columns 2 place and the next of b
    const u32 parts[] = {a.x, a.y, a.z, a.w, b0, b1};
    for (int part = 0; part < 6; part++) {
        const u64* all = meet_warp(parts[part]);
        for (int i = 0; i < 8; i++) {
            if (part < 4) wide[part % 2][part / 2 * 8 + i] = halves(all, group, i);
            else for (int e = 0; e < 2; e++) deep[(part - 4) * 8 + i][e] = halves(all, 2 * place + e, i);
        }
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) acc[i] += wide[i / 2][k] * deep[k][i % 2];
}
