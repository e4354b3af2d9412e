// Kernels for AVX-512 F, BW, VL, DQ.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>

#define QUIRE_ISA avx512
#define QUIRE_ISA_NAME "avx512"
#define QUIRE_ROWS 6

namespace quire {
namespace avx512 {
namespace {

#include "simd_avx512.h"

constexpr int kTileRows = 4, kTileCols = 6;  // outputs of `linear` held in registers at once: 24 of 32
constexpr int kRows = QUIRE_ROWS;            // rows of attention worked on at once, likewise

#include "isa.h"

}  // namespace
}  // namespace avx512

const Kernels* kernels_avx512() { return &avx512::kKernels; }

}  // namespace quire

#else

namespace quire {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace quire

#endif
