// Kernels for AVX2 with FMA.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#define QUIRE_ISA avx2
#define QUIRE_ISA_NAME "avx2"
#define QUIRE_ROWS 2

namespace quire {
namespace avx2 {
namespace {

#include "simd_avx2.h"

constexpr int kTileRows = 4, kTileCols = 2;  // outputs of `linear` held in registers at once: 8 of 16
constexpr int kRows = QUIRE_ROWS;            // rows of attention worked on at once, likewise

#include "isa.h"

}  // namespace
}  // namespace avx2

const Kernels* kernels_avx2() { return &avx2::kKernels; }

}  // namespace quire

#else

namespace quire {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace quire

#endif
