// kernels/sample_tokens.cu as a library for the CPU.
#include "sample_tokens.cu"

extern "C" void launch(const char* name, int grid_x, int grid_y, const Problem* problem) {
    const auto kernel = !strcmp(name, "survey") ? survey : !strcmp(name, "weigh") ? weigh : choose;
    for (int y = 0; y < grid_y; y++)
        for (int x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            run_program(THREADS, [&] { kernel(*problem); });
        }
}
