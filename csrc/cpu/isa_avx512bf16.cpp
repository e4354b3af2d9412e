// Kernels for AVX-512 with bf16 dot products (Zen 4, Cooper Lake, Sapphire Rapids and later).
#include "kernels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#define QUIRE_ISA avx512bf16
#define QUIRE_ISA_NAME "avx512bf16"
#define QUIRE_ROWS 6

namespace quire {
namespace avx512bf16 {
namespace {

#include "simd_avx512.h"

constexpr int kTileRows = 4, kTileCols = 6;  // outputs of `linear` held in registers at once: 24 of 32
constexpr int kRows = QUIRE_ROWS;            // rows of attention worked on at once, likewise

#include "isa.h"

}  // namespace
}  // namespace avx512bf16

const Kernels* kernels_avx512bf16() { return &avx512bf16::kKernels; }

}  // namespace quire

#else

namespace quire {
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace quire

#endif
