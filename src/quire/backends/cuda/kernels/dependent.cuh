// Programmatic dependent launch: a kernel may start while the one before it still runs (quire.backends.triton._dependent).
#pragma once
#include "ptx.cuh"

// From here on all that earlier kernels wrote is seen.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start once every program has come here.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
