// The C interface: checks arguments, cuts the work into items and runs them on the pool.
// Every operator takes one struct of arguments.h and returns a Status.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"
#include "thread_pool.h"

#define QUIRE_EXPORT extern "C" __attribute__((visibility("default")))

namespace quire {
namespace {

constexpr int kAbiVersion = 2;  // raised with every change of arguments.h; _native.py holds the same number

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
bool has_avx512() { return false; }
bool has_avx512bf16() { return false; }
bool has_avx2() { return false; }
#endif

// What this CPU can run, best first.
std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> found;
  if (has_avx512bf16()) found.push_back(kernels_avx512bf16());
  if (has_avx512()) found.push_back(kernels_avx512());
  if (has_avx2()) found.push_back(kernels_avx2());
  found.push_back(kernels_portable());
  found.erase(std::remove(found.begin(), found.end(), nullptr), found.end());
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{supported_kernels().front()};
  return kernels;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool known(int64_t dtype) { return dtype == kFloat32 || dtype == kBFloat16; }
int64_t size_of(int64_t dtype) { return dtype == kBFloat16 ? 2 : 4; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs body() and turns what it throws into a Status.
template <class Body>
int guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (...) {
    return kBadArgument;
  }
}

// Runs body(item, thread) for each item.
template <class Body>
void for_each(ThreadPool& pool, int64_t num_items, const Body& body) {
  const auto call = [](void* context, int64_t item, int thread) { (*static_cast<const Body*>(context))(item, thread); };
  pool.run(num_items, call, const_cast<Body*>(&body));
}

// Runs body(begin, end) over rows in pieces; in the caller alone where a row's `bytes` make too little work to share.
template <class Body>
int for_rows(int64_t rows, int64_t bytes, const Body& body) {
  constexpr int64_t kAloneBytes = 128 << 10, kPieceBytes = 64 << 10;
  if (rows * bytes <= kAloneBytes) {
    body(int64_t{0}, rows);
    return kOk;
  }
  const int64_t piece = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, bytes));
  PoolLease pool;
  for_each(*pool, ceil_div(rows, piece), [&](int64_t i, int) { body(i * piece, std::min(rows, (i + 1) * piece)); });
  return kOk;
}

int run_linear(const LinearArgs& a) {
  if (!known(a.dtype) || a.m < 0 || a.n < 0 || a.k < 0) return kBadArgument;
  if (a.m == 0 || a.n == 0) return kOk;
  constexpr int64_t kRowsPerItem = 128;  // x rows that stay in L2 while w streams past
  const Kernels& kernel = kernels();
  PoolLease pool;
  const int64_t row_blocks = ceil_div(a.m, kRowsPerItem);
  const int64_t row_bytes = std::max<int64_t>(1, a.k * size_of(a.dtype));
  const int64_t share = a.n * row_bytes / (pool->num_threads() * 16);
  const int64_t bytes = std::min<int64_t>(512 << 10, std::max<int64_t>(64 << 10, share));
  const int64_t wanted = std::min(a.m > 16 ? kGroupCols : a.n, bytes / row_bytes);
  const int64_t cols = std::max<int64_t>(1, wanted / kernel.tile_cols) * kernel.tile_cols;
  if (!pool->reserve_scratch(sizeof(float) * static_cast<size_t>(std::min(a.m, kRowsPerItem) * kGroupCols)))
    return kNoMemory;
  for_each(*pool, ceil_div(a.n, cols) * row_blocks, [&](int64_t i, int thread) {
    const int64_t m0 = i % row_blocks * kRowsPerItem, n0 = i / row_blocks * cols;
    kernel.linear(a, m0, std::min(a.m, m0 + kRowsPerItem), n0, std::min(a.n, n0 + cols),
                  static_cast<float*>(pool->scratch(thread)));
  });
  return kOk;
}

int run_norm(const NormArgs& a) {
  if (!known(a.dtype) || a.outer < 0 || a.inner < 1 || a.hidden < 1) return kBadArgument;
  return for_rows(a.outer * a.inner, 3 * a.hidden * size_of(a.dtype),
                  [&, norm = kernels().norm](int64_t begin, int64_t end) { norm(a, begin, end); });
}

int run_silu_mul(const SiluMulArgs& a) {
  if (!known(a.dtype) || a.rows < 0 || a.inner < 0) return kBadArgument;
  constexpr int64_t kCostFactor = 2;  // an exponential costs more than its bytes
  return for_rows(a.rows, kCostFactor * 3 * a.inner * size_of(a.dtype),
                  [&, silu_mul = kernels().silu_mul](int64_t begin, int64_t end) { silu_mul(a, begin, end); });
}

int run_greedy(const GreedyArgs& a) {
  if (!known(a.dtype) || a.rows < 0 || a.vocab < 1) return kBadArgument;
  return for_rows(a.rows, a.vocab * size_of(a.dtype),
                  [&, greedy = kernels().greedy](int64_t begin, int64_t end) { greedy(a, begin, end); });
}

bool all_below(const int64_t* ids, int64_t count, int64_t limit) {
  return std::all_of(ids, ids + count, [limit](int64_t id) { return id >= 0 && id < limit; });
}

int run_rotary(const RotaryArgs& a) {
  if (!known(a.dtype) || a.tokens < 0 || a.rot_dim < 0 || a.rot_dim % 2) return kBadArgument;
  if (!all_below(a.positions, a.tokens, a.max_position)) return kOutOfRange;
  return for_rows(a.tokens, (a.q_heads + a.k_heads) * a.rot_dim * size_of(a.dtype) * 2,
                  [&, rotary = kernels().rotary](int64_t begin, int64_t end) { rotary(a, begin, end); });
}

int run_write_kv(const WriteKvArgs& a) {
  if (!known(a.dtype) || a.tokens < 0 || a.heads < 0 || a.head_dim < 0) return kBadArgument;
  if (std::any_of(a.slots, a.slots + a.tokens, [&](int64_t slot) { return slot >= a.num_slots; })) return kOutOfRange;
  const int64_t size = size_of(a.dtype), head_bytes = a.head_dim * size, slot_bytes = a.heads * head_bytes;
  const auto copy = [&](const void* from, int64_t stride, int64_t head_stride, char* to, int64_t token) {
    const char* row = static_cast<const char*>(from) + token * stride * size;
    char* slot = to + a.slots[token] * slot_bytes;
    for (int64_t h = 0; h < a.heads; ++h) std::memcpy(slot + h * head_bytes, row + h * head_stride * size, head_bytes);
  };
  char* const keys = static_cast<char*>(a.kv);
  char* const values = keys + a.num_slots * slot_bytes;
  return for_rows(a.tokens, 4 * slot_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      if (a.slots[token] < 0) continue;
      copy(a.k, a.k_stride, a.k_head_stride, keys, token);
      copy(a.v, a.v_stride, a.v_head_stride, values, token);
    }
  });
}

int run_embedding(const EmbeddingArgs& a) {
  if (a.tokens < 0 || a.row_bytes < 0) return kBadArgument;
  if (!all_below(a.ids, a.tokens, a.vocab)) return kOutOfRange;
  return for_rows(a.tokens, 2 * a.row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      std::memcpy(static_cast<char*>(a.out) + token * a.row_bytes,
                  static_cast<const char*>(a.weight) + a.ids[token] * a.row_bytes, a.row_bytes);
  });
}

// Whether every length fits its queries and its block table, and every block the cache.
int check_sequences(const AttentionArgs& a) {
  if (a.query_start[0] != 0) return kOutOfRange;
  for (int64_t b = 0; b < a.sequences; ++b) {
    const int64_t queries = a.query_start[b + 1] - a.query_start[b], length = a.seq_lens[b];
    if (queries < 0 || a.query_start[b + 1] > a.tokens) return kOutOfRange;
    if (length == 0) continue;
    const int64_t blocks = ceil_div(length, a.block_size);
    if (length < queries || blocks > a.table_width) return kOutOfRange;
    const int32_t* table = a.block_tables + b * a.table_width;
    if (std::any_of(table, table + blocks, [&](int32_t id) { return id < 0 || id >= a.num_blocks; }))
      return kOutOfRange;
  }
  return kOk;
}

// Sets to zero the output rows that belong to no sequence, or to one of length 0.
void clear_padding(const AttentionArgs& a) {
  const int64_t row_bytes = a.q_heads * a.head_dim * size_of(a.dtype);
  const auto clear = [&](int64_t begin, int64_t end) {
    if (begin < end) std::memset(static_cast<char*>(a.out) + begin * row_bytes, 0, (end - begin) * row_bytes);
  };
  for (int64_t b = 0; b < a.sequences; ++b)
    if (a.seq_lens[b] == 0) clear(a.query_start[b], std::min<int64_t>(a.tokens, a.query_start[b + 1]));
  clear(a.query_start[a.sequences], a.tokens);
}

// Items of every sequence, those with most keys first so that no thread is left with a long one at the end.
std::vector<AttentionItem> attention_items(const AttentionArgs& a) {
  std::vector<AttentionItem> items;
  const int64_t group = a.q_heads / a.kv_heads, heads = std::min<int64_t>(group, kMaxRows), step = kMaxRows / heads;
  for (int64_t b = 0; b < a.sequences; ++b) {
    const int64_t begin = a.query_start[b], queries = a.query_start[b + 1] - begin;
    if (a.seq_lens[b] == 0) continue;
    for (int64_t t = 0; t < queries; t += step) {
      const int64_t tokens = std::min(step, queries - t), position = a.seq_lens[b] - queries + t;
      const int64_t low = a.window > 0 ? std::max<int64_t>(0, position + 1 - a.window) : 0;
      for (int64_t h = 0; h < a.kv_heads; ++h)
        for (int64_t g = 0; g < group; g += heads)
          items.push_back({b, h, h * group + g, std::min(heads, group - g), begin + t, tokens, position,
                           low / kSplitKeys, ceil_div(position + tokens, kSplitKeys)});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const AttentionItem& x, const AttentionItem& y) {
    return (x.end_split - x.first_split) * x.rows() > (y.end_split - y.first_split) * y.rows();
  });
  return items;
}

// Few items over many keys: threads share an item's splits, and a second pass folds them in the order that attend()
// has.
int attend_by_splits(const AttentionArgs& a, const std::vector<AttentionItem>& items, ThreadPool& pool) {
  struct Part {
    const AttentionItem* item;
    int64_t split;
    size_t offset;
  };
  std::vector<Part> parts;
  std::vector<size_t> first;
  size_t floats = 0;
  for (const AttentionItem& item : items) {
    first.push_back(floats);
    for (int64_t split = item.first_split; split < item.end_split; ++split) {
      parts.push_back({&item, split, floats});
      floats += static_cast<size_t>(item.rows() * (2 + a.head_dim));
    }
  }
  std::vector<float> partial(floats);
  const Kernels& kernel = kernels();
  for_each(pool, static_cast<int64_t>(parts.size()), [&](int64_t i, int thread) {
    const Part& part = parts[static_cast<size_t>(i)];
    kernel.attend_part(a, *part.item, part.split, partial.data() + part.offset,
                       static_cast<float*>(pool.scratch(thread)));
  });
  for_each(pool, static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const size_t at = static_cast<size_t>(i);
    kernel.combine(a, items[at], partial.data() + first[at], static_cast<float*>(pool.scratch(thread)));
  });
  return kOk;
}

int run_attention(const AttentionArgs& a) {
  constexpr int64_t kMaxHeadDim = 256;
  if (!known(a.dtype) || a.head_dim < 1 || a.head_dim > kMaxHeadDim || a.kv_heads < 1 || a.q_heads % a.kv_heads ||
      a.block_size < 1 || a.tokens < 0 || a.sequences < 0 || a.window < 0)
    return kBadArgument;
  if (const int status = check_sequences(a)) return status;
  clear_padding(a);
  const std::vector<AttentionItem> items = attention_items(a);
  if (items.empty()) return kOk;
  const Kernels& kernel = kernels();
  PoolLease pool;
  if (!pool->reserve_scratch(sizeof(float) * static_cast<size_t>(attention_scratch_floats(a.head_dim))))
    return kNoMemory;
  const bool few = static_cast<int64_t>(items.size()) < 4 * pool->num_threads();
  if (few && pool->num_threads() > 1 && items.front().end_split - items.front().first_split > 1)
    return attend_by_splits(a, items, *pool);
  for_each(*pool, static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    kernel.attend(a, items[static_cast<size_t>(i)], static_cast<float*>(pool->scratch(thread)));
  });
  return kOk;
}

}  // namespace
}  // namespace quire

using namespace quire;

QUIRE_EXPORT int quire_abi_version() { return kAbiVersion; }
QUIRE_EXPORT int quire_linear(const LinearArgs* a) {
  return guarded([a] { return run_linear(*a); });
}
QUIRE_EXPORT int quire_norm(const NormArgs* a) {
  return guarded([a] { return run_norm(*a); });
}
QUIRE_EXPORT int quire_silu_mul(const SiluMulArgs* a) {
  return guarded([a] { return run_silu_mul(*a); });
}
QUIRE_EXPORT int quire_greedy(const GreedyArgs* a) {
  return guarded([a] { return run_greedy(*a); });
}
QUIRE_EXPORT int quire_rotary(const RotaryArgs* a) {
  return guarded([a] { return run_rotary(*a); });
}
QUIRE_EXPORT int quire_write_kv(const WriteKvArgs* a) {
  return guarded([a] { return run_write_kv(*a); });
}
QUIRE_EXPORT int quire_embedding(const EmbeddingArgs* a) {
  return guarded([a] { return run_embedding(*a); });
}
QUIRE_EXPORT int quire_paged_attention(const AttentionArgs* a) {
  return guarded([a] { return run_attention(*a); });
}

// Caller included; at least 1. Takes effect with the next operator.
QUIRE_EXPORT int quire_set_num_threads(int num_threads) {
  if (num_threads < 1) return kBadArgument;
  return guarded([num_threads] { return set_num_threads(num_threads), kOk; });
}
QUIRE_EXPORT int quire_get_num_threads() { return get_num_threads(); }

// The instruction set in use, and the i-th that this CPU has, best first; null past the end.
QUIRE_EXPORT const char* quire_isa() { return kernels().name; }
QUIRE_EXPORT const char* quire_supported_isa(int i) {
  const auto found = supported_kernels();
  return i >= 0 && static_cast<size_t>(i) < found.size() ? found[static_cast<size_t>(i)]->name : nullptr;
}
QUIRE_EXPORT int quire_use_isa(const char* name) {
  for (const Kernels* kernel : supported_kernels())
    if (!std::strcmp(kernel->name, name)) return chosen().store(kernel), kOk;
  return kBadArgument;
}
