// kernels/attention_plan.cu and split_attention.cu as a library for the CPU.
#include "ptx.cuh"
#undef DEVICE
#define DEVICE inline
#include "attention_plan.cuh"
#include "tiles.cuh"

namespace plan {
#include "attention_plan.cu"
}
namespace split {
#include "split_attention.cu"
}

extern "C" void make_plan(const plan::Arguments* arguments) {
    run_program(plan::THREADS, [&] { plan::attention_plan(*arguments); });
}
extern "C" void attend(int num_programs, const split::Arguments* arguments) {
    gridDim = {num_programs, 1, 1};
    for (int x = 0; x < num_programs; x++) {
        blockIdx = {x, 0, 0};
        memset(memory, 0xff, sizeof memory);  // NaN
        for (auto& groups : copies) groups.clear();
        run_program(split::THREADS, [&] { split::split_attention(*arguments); });
    }
}
