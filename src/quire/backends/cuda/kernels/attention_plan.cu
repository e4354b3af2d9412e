// What decoding rows' attention has to do in a step, the same in all layers: a list of items, those with most keys first. One program.
//
// A row's keys are split at positions that depend on its own length alone, never on its batch mates.
#include "attention_plan.cuh"

constexpr int THREADS = 1024, CLASSES = 32;  // items of a class differ by less than 1 / CLASSES of a whole split, and lie in any order

struct Arguments {
    const int* starts;  // [num_rows + 1]
    const int* lens;    // [num_rows]
    Plan* plan;
    int num_rows, split_keys, most_splits;
};

// Of items with `keys` keys: the longest are in class 0.
DEVICE int class_of(int keys, int split_keys) { return CLASSES - 1 - min(CLASSES - 1, max(keys - 1, 0) * CLASSES / split_keys); }

extern "C" __global__ void __launch_bounds__(THREADS) attention_plan(const __grid_constant__ Arguments a) {
    __shared__ int places[CLASSES];  // counts, then where each class goes on
    wait_for_previous();
    let_next_start();
    if (threadIdx.x < CLASSES) places[threadIdx.x] = 0;
    __syncthreads();
    for (int row = threadIdx.x; row < a.num_rows; row += THREADS) {
        if (a.starts[row + 1] - a.starts[row] != 1) continue;
        const Splits s(a.lens[row], a.split_keys, a.most_splits);
        if (s.count > 1) atomicAdd(places, s.count - 1);
        atomicAdd(places + class_of(s.last_keys(), a.split_keys), 1);
    }
    __syncthreads();
    if (threadIdx.x < CLASSES) {
        const int count = places[threadIdx.x];
        int end = count;
#pragma unroll
        for (int step = 1; step < CLASSES; step *= 2) {
            const int before = __shfl_up_sync(~0u, end, step);
            if ((int)threadIdx.x >= step) end += before;
        }
        places[threadIdx.x] = end - count;
        if (threadIdx.x == CLASSES - 1) a.plan->num_items = end;
    }
    __syncthreads();
    for (int row = threadIdx.x; row < a.num_rows; row += THREADS) {
        const int token = a.starts[row];
        if (a.starts[row + 1] - token != 1) continue;
        const Splits s(a.lens[row], a.split_keys, a.most_splits);
        const int place = s.count > 1 ? atomicAdd(places, s.count - 1) : 0;
        for (int i = 0; i < s.count - 1; i++) a.plan->items[place + i] = s.item(row, token, i);
        a.plan->items[atomicAdd(places + class_of(s.last_keys(), a.split_keys), 1)] = s.item(row, token, s.count - 1);
    }
}
