// Tiles of keys and values in shared memory: how they get there, and into the registers of matrix products. IS_BF16: bfloat16 or float16.
#pragma once
#include "ptx.cuh"

DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char shared[];
    return shared;
}
DEVICE void store_word(u32 address, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory"); }
// Not moved to before a wait for the kernel that writes it.
DEVICE u32 load_word(const u16* p) {
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// A lane's copies since the last end_of_copies are a group; groups end in order.
template <int PENDING>
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// 16 bytes, or zeros where `num_bytes` is 0.
DEVICE void copy_or_clear(u32 target, const void* source, int num_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(num_bytes) : "memory");
}

DEVICE u32 pack(float low, float high) {
    u32 packed;
    if (IS_BF16) return pack_bf16(low, high);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE float2 unpack(u32 x) {
    if (IS_BF16) return make_float2(low_half(x), high_half(x));
    float2 v;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(v.x), "=f"(v.y) : "r"(x));
    return v;
}
// acc [16, 8] += a [16, 16] · b [16, 8].
DEVICE void multiply(float (&acc)[4], uint4 a, u32 b0, u32 b1) {
#if IS_BF16
    multiply_add(acc, a.x, a.y, a.z, a.w, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}
// An 8 x 8 matrix of 2-byte numbers, turned over.
DEVICE u32 transposed(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
