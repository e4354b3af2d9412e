// Everything an instruction set's file has in common. Included inside namespace quire::QUIRE_ISA, after its vectors.
// No function of the standard library may be called from here: a template or inline function of it, compiled for this
// instruction set, could be the copy that the linker keeps for all.

#include "vector_math.h"

#include "linear.h"

#include "rowwise.h"

#include "attention.h"

const Kernels kKernels = {QUIRE_ISA_NAME, kTileCols, linear, norm,        silu_mul,
                          rotary,         greedy,    attend, attend_part, combine};
