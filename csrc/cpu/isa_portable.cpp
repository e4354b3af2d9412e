// Kernels for any CPU.
#include "kernels.h"

#if 1

#define QUIRE_ISA portable
#define QUIRE_ISA_NAME "portable"
#define QUIRE_ROWS 2

namespace quire {
namespace portable {
namespace {

#include "simd_portable.h"

constexpr int kTileRows = 4, kTileCols = 2;  // outputs of `linear` held in registers at once: 8 of 16
constexpr int kRows = QUIRE_ROWS;            // rows of attention worked on at once, likewise

#include "isa.h"

}  // namespace
}  // namespace portable

const Kernels* kernels_portable() { return &portable::kKernels; }

}  // namespace quire

#else

namespace quire {
const Kernels* kernels_portable() { return nullptr; }
}  // namespace quire

#endif
