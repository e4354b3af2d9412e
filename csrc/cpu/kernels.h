// The table of kernels that each instruction set fills.
#pragma once

#include "arguments.h"

#define QUIRE_INLINE inline __attribute__((always_inline))

namespace quire {

constexpr int kTileKeys = 64;       // keys of one softmax step
constexpr int kSplitKeys = 512;     // keys of one independent state; long sequences are spread over threads by these
constexpr int kMaxRows = 64;        // query rows (tokens × heads of a group) of one attention item
constexpr int64_t kGroupCols = 96;  // columns of `linear` that share a K block of x while it is in the cache
constexpr int64_t kL2Bytes = 1 << 20;

// Query tokens × heads of one sequence that share a key head.
struct AttentionItem {
  int64_t sequence, kv_head, first_head, heads;
  int64_t first_token, tokens, first_position;  // row in q, count, place in the sequence
  int64_t first_split, end_split;               // splits with a key that any of the tokens sees

  int64_t rows() const { return tokens * heads; }
};

constexpr int64_t attention_scratch_floats(int64_t head_dim) {
  return 3 * kMaxRows * head_dim + kTileKeys * (head_dim + 16) + kMaxRows * kTileKeys + 4 * kMaxRows + 9 * 16;
}

struct Kernels {
  const char* name;
  int64_t tile_cols;  // columns of w that `linear` works on at once; ranges had best be multiples
  void (*linear)(const LinearArgs&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch);
  void (*norm)(const NormArgs&, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulArgs&, int64_t begin, int64_t end);
  void (*rotary)(const RotaryArgs&, int64_t begin, int64_t end);
  void (*greedy)(const GreedyArgs&, int64_t begin, int64_t end);
  void (*attend)(const AttentionArgs&, const AttentionItem&, float* scratch);
  void (*attend_part)(const AttentionArgs&, const AttentionItem&, int64_t split, float* partial, float* scratch);
  void (*combine)(const AttentionArgs&, const AttentionItem&, const float* partial, float* scratch);
};

// Null where the compiler could not build them.
const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_portable();

}  // namespace quire
