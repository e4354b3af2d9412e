// What crosses the C boundary: one flat struct of 64-bit fields an operator, so that Python packs it with one
// struct.pack. Pointers are to row-major data whose last dimension is contiguous; strides count elements.
#pragma once

#include <cstdint>

namespace quire {

struct bf16 {
  uint16_t bits;
};

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1 };

enum Status : int {
  kOk = 0,
  kBadArgument = 1,  // a shape, stride or dtype that no kernel takes
  kNoMemory = 2,
  kOutOfRange = 3,  // an id, slot, position or block number points outside its table; nothing outside was touched
};

// out[M, N] = x[M, K] @ w[N, K]^T + bias[N]
struct LinearArgs {
  const void *x, *w, *bias;  // bias may be null
  void* out;
  int64_t m, n, k, x_stride, w_stride, out_stride, dtype;
};

// out[rows, H] = norm(x). Rows come as [outer, inner] so that heads of a packed qkv row can be normed in place.
// With a residual: residual += x first, and the sum is normed. With a bias: layer norm, else root-mean-square norm.
struct NormArgs {
  const void* x;
  void* residual;  // null, or [rows, H] contiguous
  const void *weight, *bias;
  void* out;  // [rows, H] contiguous
  int64_t outer, inner, hidden, outer_stride, inner_stride, dtype;
  double eps;
};

// out[T, I] = silu(x[T, :I]) * x[T, I:]
struct SiluMulArgs {
  const void* x;
  void* out;
  int64_t rows, inner, x_stride, dtype;
};

// Rotates the first R dimensions of each head of q and k in place.
struct RotaryArgs {
  void *q, *k;
  const int64_t* positions;
  const float* cos_sin;  // [max_position, R]
  int64_t tokens, q_heads, k_heads, rot_dim, max_position;
  int64_t q_stride, q_head_stride, k_stride, k_head_stride, dtype;
};

// kv[0 and 1, slot, head, :] = k and v
struct WriteKvArgs {
  const void *k, *v;
  void* kv;
  const int64_t* slots;
  int64_t tokens, heads, head_dim, num_slots;
  int64_t k_stride, k_head_stride, v_stride, v_head_stride, dtype;
};

// out[T, H] = weight[ids]
struct EmbeddingArgs {
  const int64_t* ids;
  const void* weight;
  void* out;
  int64_t tokens, vocab, row_bytes;
};

// out[rows] = index of the first largest logit, or -1 where a row holds NaN or an infinity
struct GreedyArgs {
  const void* logits;
  int64_t* out;
  int64_t rows, vocab, stride, dtype;
};

struct AttentionArgs {
  const void *q, *kv;
  void* out;  // [T, Hq, D] contiguous
  const int32_t *query_start, *seq_lens, *block_tables;
  int64_t tokens, sequences, q_heads, kv_heads, head_dim;
  int64_t num_blocks, block_size, table_width, q_stride, q_head_stride, window, dtype;
  double scale;
};

}  // namespace quire
