// Paged causal attention: online softmax (FlashAttention-2, arXiv:2307.08691) over key tiles at fixed places.
//
// A query's result is one fixed sequence of operations on its own keys, whatever the chunk, batch, block size or
// thread: keys are cut into splits of kSplitKeys and tiles of kTileKeys counted from position 0; inside a split the
// tiles go into one running (peak, total, acc) in ascending order; the splits' states are folded in ascending order.
// Queries of a tile and of the group of heads that share a key head are worked on together so that keys and values are
// read once; each keeps its own sums. Keys outside a query's range never enter its sums, not even times zero: they may
// be uninitialised memory.
//
// Included inside the namespace of one instruction set.

constexpr int kTileVectors = kTileKeys / kLanes;
constexpr float kLog2e = 1.4426950408889634f;

// Where a tile's keys and values are in the cache.
struct TileRows {
  const void *keys[kTileKeys], *values[kTileKeys];
  int64_t count = 0, row_bytes = 0, num_fetched = 0;

  // Asks for the next `num_rows` rows. A few at a time between pieces of work on the tile before, so that memory is
  // read while that one is computed: all at once would fill the queue of outstanding reads and stop the core.
  void fetch(int64_t num_rows) {
    const int64_t end = num_fetched + num_rows < count ? num_fetched + num_rows : count;
    for (; num_fetched < end; ++num_fetched)
      for (int64_t at = 0; at < row_bytes; at += 64) {
        __builtin_prefetch(static_cast<const char*>(keys[num_fetched]) + at, 0, 2);
        __builtin_prefetch(static_cast<const char*>(values[num_fetched]) + at, 0, 2);
      }
  }
};

// A thread's scratch, cut up. Rows are (query token, head of the group), token-major.
struct AttentionScratch {
  float* query;               // [kMaxRows, units]; a unit is 32 bits, one float or a pair of bf16 (see Unit)
  float* keys;                // [units, kTileKeys]
  float* scores;              // [kMaxRows, kTileKeys], then weights
  float *peak, *total, *acc;  // of the split: [kMaxRows], [kMaxRows], [kMaxRows, D]
  float *all_peak, *all_total, *all_acc;  // of all splits so far
  TileRows tiles[2];                      // the one at hand and the next, by turns

  AttentionScratch(float* memory, int64_t head_dim) {
    const auto take = [&memory](int64_t floats) {
      float* part = memory;
      memory += (floats + 15) / 16 * 16;
      return part;
    };
    query = take(kMaxRows * head_dim);
    keys = take(kTileKeys * (head_dim + kLanes));
    scores = take(kMaxRows * kTileKeys);
    peak = take(kMaxRows), total = take(kMaxRows), acc = take(kMaxRows * head_dim);
    all_peak = take(kMaxRows), all_total = take(kMaxRows), all_acc = take(kMaxRows * head_dim);
  }
};

// The keys [low, high) that the item's row `row` sees, as absolute positions.
struct KeyRange {
  int64_t low, high;
};
inline KeyRange keys_of(const AttentionItem& item, int64_t row, int64_t window) {
  const int64_t position = item.first_position + row / item.heads;
  const int64_t low = window > 0 && position + 1 > window ? position + 1 - window : 0;
  return {low, position + 1};
}

template <class T>
QUIRE_INLINE int64_t units_of(int64_t head_dim) {
  return (head_dim + Unit<T>::kElements - 1) / Unit<T>::kElements;
}

// Finds `count` keys from first_key on.
template <class T>
inline void find_rows(const AttentionArgs& a, const AttentionItem& item, int64_t first_key, int64_t count,
                      TileRows& tile) {
  const int32_t* block = a.block_tables + item.sequence * a.table_width + first_key / a.block_size;
  const int64_t step = a.kv_heads * a.head_dim, to_values = a.num_blocks * a.block_size * step;
  const T* const heads = static_cast<const T*>(a.kv) + item.kv_head * a.head_dim;
  tile.count = count;
  tile.row_bytes = a.head_dim * static_cast<int64_t>(sizeof(T));
  tile.num_fetched = 0;
  int64_t offset = first_key % a.block_size;
  for (int64_t j = 0; j < count; ++block, offset = 0) {
    const T* row = heads + (*block * a.block_size + offset) * step;
    for (; j < count && offset < a.block_size; ++j, ++offset, row += step)
      tile.keys[j] = row, tile.values[j] = row + to_values;
  }
}

template <class T>
inline void load_queries(const AttentionArgs& a, const AttentionItem& item, float* query) {
  constexpr int64_t kWide = kLanes * Unit<T>::kElements;
  const int64_t units = units_of<T>(a.head_dim);
  for (int64_t row = 0; row < item.rows(); ++row, query += units) {
    const T* q = static_cast<const T*>(a.q) + (item.first_token + row / item.heads) * a.q_stride +
                 (item.first_head + row % item.heads) * a.q_head_stride;
    int64_t d = 0, u = 0;
    for (; d + kWide <= a.head_dim; d += kWide, u += kLanes) store(query + u, Unit<T>::load(q + d));
    if (d < a.head_dim) store_n(query + u, Unit<T>::load_n(q + d, a.head_dim - d), units - u);
  }
}

// Some keys or elements of a square are missing and become 0.
template <class T>
inline void load_ragged_square(const void* const* rows, int64_t count, int64_t d, int64_t head_dim, vf* square) {
  constexpr int64_t kWide = kLanes * Unit<T>::kElements;
  const int64_t width = head_dim - d < kWide ? head_dim - d : kWide;
  for (int i = 0; i < kLanes; ++i)
    square[i] = i < count ? Unit<T>::load_n(static_cast<const T*>(rows[i]) + d, width) : zero();
}

// keys[u][j] = unit u of key j of the tile, 0 where the sequence has no such key.
template <class T>
inline void load_keys(int64_t head_dim, const TileRows& tile, TileRows& next, float* keys) {
  constexpr int64_t kWide = kLanes * Unit<T>::kElements;
  const int64_t squares = kTileVectors * ((head_dim + kWide - 1) / kWide);
  for (int64_t j = 0; j < kTileKeys; j += kLanes) {
    for (int64_t d = 0; d < head_dim; d += kWide) {
      next.fetch(kTileKeys / 2 / squares);
      vf square[kLanes];
      if (j + kLanes <= tile.count && d + kWide <= head_dim)
        for (int i = 0; i < kLanes; ++i) square[i] = Unit<T>::load(static_cast<const T*>(tile.keys[j + i]) + d);
      else
        load_ragged_square<T>(tile.keys + j, tile.count - j, d, head_dim, square);
      transpose(square);
      float* const to = keys + d / Unit<T>::kElements * kTileKeys + j;  // room for kLanes rows past the last
      for (int i = 0; i < kLanes; ++i) store(to + i * kTileKeys, square[i]);
    }
  }
}

// scores[r][j] = query[r] · keys[:, j] for R rows and all keys of the tile.
template <class T, int R>
inline void score_rows(const float* query, const float* keys, int64_t units, float* scores) {
  constexpr int kWide = kTileVectors < 4 ? kTileVectors : 4;
  for (int j = 0; j < kTileVectors; j += kWide) {
    vf acc[R][kWide];
    for (auto& row : acc)
      for (vf& v : row) v = zero();
    for (int64_t u = 0; u < units; ++u) {
      vf key[kWide];
      for (int v = 0; v < kWide; ++v) key[v] = load(keys + u * kTileKeys + (j + v) * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const vf q = set1(query[r * units + u]);
        for (int v = 0; v < kWide; ++v) acc[r][v] = Unit<T>::add_product(acc[r][v], q, key[v]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kWide; ++v) store(scores + r * kTileKeys + (j + v) * kLanes, acc[r][v]);
  }
}

// x[i] *= factor
QUIRE_INLINE void scale_by(float* x, int64_t n, float factor) {
  const vf f = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, mul(load(x + i), f));
  if (i < n) store_n(x + i, mul(load_n(x + i, n - i), f), n - i);
}

// R rows' scores become weights 2^(score · factor - peak) on keys [low[r], high[r]) of the tile, 0 elsewhere; their
// sums are rescaled to the new peaks. kWhole: every row sees every key.
template <int R, bool kWhole>
inline void softmax_rows(const int64_t* low, const int64_t* high, int64_t head_dim, float factor, float* scores,
                         float* peak, float* total, float* acc) {
  const vf nothing = set1(-__builtin_inff()), f = set1(factor);
  vf highest[kLanes], sums[kLanes];
  for (int i = 0; i < kLanes; ++i) highest[i] = nothing, sums[i] = zero();
  const auto only_seen = [&](vf x, int r, int v, vf other) {
    return kWhole ? x : keep_lanes(x, low[r] - v * kLanes, high[r] - v * kLanes, other);
  };
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileVectors; ++v)
      highest[r] = vmax(only_seen(mul(load(scores + r * kTileKeys + v * kLanes), f), r, v, nothing), highest[r]);
  const vf old_peak = load_n(peak, R);
  const vf new_peak = vmax(join_rows(highest, vmax), old_peak), shrink = exp2v(sub(old_peak, new_peak));
  float shift[kLanes], shrinks[kLanes];
  store(shift, new_peak);
  store(shrinks, shrink);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kTileVectors; ++v) {
      float* const at = scores + r * kTileKeys + v * kLanes;
      const vf weight = only_seen(exp2v(sub(mul(load(at), f), set1(shift[r]))), r, v, zero());
      store(at, weight);
      sums[r] = add(sums[r], weight);
    }
  store_n(peak, new_peak, R);
  store_n(total, add(mul(load_n(total, R), shrink), join_rows(sums, add)), R);
  for (int r = 0; r < R; ++r)
    if (shrinks[r] != 1.0f) scale_by(acc + r * head_dim, head_dim, shrinks[r]);
}

// acc[r][d0 : d0 + V·kLanes] += Σ weights[r][j] · values[j], keys [low, high) in ascending order. `width` < kLanes only
// with V = 1.
template <class T, int R, int V>
inline void add_values_at(const float* weights, const void* const* values, int64_t low, int64_t high, int64_t d0,
                          int64_t width, int64_t head_dim, float* acc) {
  const bool whole = V > 1 || width == kLanes;
  vf sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      const float* from = acc + r * head_dim + d0 + v * kLanes;
      sums[r][v] = whole ? load(from) : load_n(from, width);
    }
  for (int64_t j = low; j < high; ++j) {
    const T* row = static_cast<const T*>(values[j]) + d0;
    vf value[V];
    for (int v = 0; v < V; ++v) value[v] = whole ? load(row + v * kLanes) : load_n(row, width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf weight = set1(weights[r * kTileKeys + j]);
      for (int v = 0; v < V; ++v) sums[r][v] = fma(weight, value[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      float* to = acc + r * head_dim + d0 + v * kLanes;
      whole ? store(to, sums[r][v]) : store_n(to, sums[r][v], width);
    }
}

template <class T, int R>
inline void add_values(const float* weights, const void* const* values, int64_t low, int64_t high, int64_t head_dim,
                       float* acc) {
  if (low >= high) return;
  int64_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes)
    add_values_at<T, R, 4>(weights, values, low, high, d, kLanes, head_dim, acc);
  for (; d < head_dim; d += kLanes)
    add_values_at<T, R, 1>(weights, values, low, high, d, head_dim - d < kLanes ? head_dim - d : kLanes, head_dim, acc);
}

// R rows that all see some key of the tile at first_key.
template <class T, int R>
inline void attend_rows(const AttentionArgs& a, const AttentionItem& item, int64_t row, int64_t first_key,
                        const TileRows& tile, TileRows& next, int64_t fetch, AttentionScratch& s) {
  const int64_t units = units_of<T>(a.head_dim);
  const float factor = static_cast<float>(a.scale) * kLog2e;
  float* const scores = s.scores + row * kTileKeys;
  float* const acc = s.acc + row * a.head_dim;
  next.fetch(fetch);
  score_rows<T, R>(s.query + row * units, s.keys, units, scores);
  int64_t low[R], high[R], shared_low = 0, shared_high = kTileKeys;
  for (int r = 0; r < R; ++r) {
    const KeyRange range = keys_of(item, row + r, a.window);
    low[r] = range.low > first_key ? range.low - first_key : 0;
    high[r] = range.high < first_key + kTileKeys ? range.high - first_key : static_cast<int64_t>(kTileKeys);
    shared_low = low[r] > shared_low ? low[r] : shared_low;
    shared_high = high[r] < shared_high ? high[r] : shared_high;
  }
  const auto softmax = shared_low == 0 && shared_high == kTileKeys ? softmax_rows<R, true> : softmax_rows<R, false>;
  next.fetch(fetch);
  softmax(low, high, a.head_dim, factor, scores, s.peak + row, s.total + row, acc);
  if (shared_high < shared_low) shared_high = shared_low;
  // Keys that only some rows see are added row by row; each row still takes its keys in ascending order.
  for (int r = 0; r < R; ++r) {
    const int64_t stop = high[r] < shared_low ? high[r] : shared_low;
    add_values<T, 1>(scores + r * kTileKeys, tile.values, low[r], stop, a.head_dim, acc + r * a.head_dim);
  }
  next.fetch(fetch);
  add_values<T, R>(scores, tile.values, shared_low, shared_high, a.head_dim, acc);
  for (int r = 0; r < R; ++r)
    add_values<T, 1>(scores + r * kTileKeys, tile.values, shared_high, high[r], a.head_dim, acc + r * a.head_dim);
}

template <class T>
inline void attend_some_rows(const AttentionArgs& a, const AttentionItem& item, int64_t row, int64_t count,
                             int64_t first_key, const TileRows& tile, TileRows& next, int64_t fetch,
                             AttentionScratch& s) {
  switch (count) {
    case 1:
      return attend_rows<T, 1>(a, item, row, first_key, tile, next, fetch, s);
    case 2:
      return attend_rows<T, 2>(a, item, row, first_key, tile, next, fetch, s);
#if QUIRE_ROWS > 2
    case 3:
      return attend_rows<T, 3>(a, item, row, first_key, tile, next, fetch, s);
    case 4:
      return attend_rows<T, 4>(a, item, row, first_key, tile, next, fetch, s);
    case 5:
      return attend_rows<T, 5>(a, item, row, first_key, tile, next, fetch, s);
    default:
      return attend_rows<T, 6>(a, item, row, first_key, tile, next, fetch, s);
#endif
  }
}

// Rows [begin, end) of the item that see some key in [first_key, first_key + num_keys); a run, since ranges move with
// the token.
struct RowRange {
  int64_t begin, end;
};
inline RowRange rows_seeing(const AttentionArgs& a, const AttentionItem& item, int64_t first_key, int64_t num_keys) {
  int64_t begin = 0, end = item.rows();
  while (begin < end && keys_of(item, begin, a.window).high <= first_key) begin += item.heads;
  while (begin < end && keys_of(item, end - 1, a.window).low >= first_key + num_keys) end -= item.heads;
  return {begin, end};
}

QUIRE_INLINE int64_t tile_size(int64_t first_key, int64_t limit) {
  const int64_t left = limit > first_key ? limit - first_key : 0;
  return left < kTileKeys ? left : static_cast<int64_t>(kTileKeys);
}

// The state of all rows over one split, from nothing. Returns the rows that see any of its keys.
template <class T>
inline RowRange attend_split(const AttentionArgs& a, const AttentionItem& item, int64_t split, AttentionScratch& s) {
  const int64_t first = split * kSplitKeys;
  const RowRange seen = rows_seeing(a, item, first, kSplitKeys);
  for (int64_t row = seen.begin; row < seen.end; ++row) {
    s.peak[row] = -__builtin_inff();
    s.total[row] = 0;
    __builtin_memset(s.acc + row * a.head_dim, 0, sizeof(float) * static_cast<uint64_t>(a.head_dim));
  }
  const int64_t limit = item.first_position + item.tokens;  // the last token sees keys [.., limit)
  for (int64_t key = first, turn = 0; key < first + kSplitKeys && key < limit; key += kTileKeys) {
    const RowRange rows = rows_seeing(a, item, key, kTileKeys);
    if (rows.begin >= rows.end) continue;
    TileRows& tile = s.tiles[turn % 2];
    TileRows& next = s.tiles[(turn + 1) % 2];
    if (turn++ == 0) find_rows<T>(a, item, key, tile_size(key, limit), tile);
    find_rows<T>(a, item, key + kTileKeys, tile_size(key + kTileKeys, limit), next);
    load_keys<T>(a.head_dim, tile, next, s.keys);
    const int64_t groups = (rows.end - rows.begin + kRows - 1) / kRows;
    for (int64_t g = 0, row = rows.begin; g < groups; ++g) {  // groups of nearly equal size
      const int64_t count = (rows.end - row + groups - g - 1) / (groups - g);
      attend_some_rows<T>(a, item, row, count, key, tile, next, kTileKeys / 6 / groups + 1, s);
      row += count;
    }
  }
  return seen;
}

// Adds one split's state of one row to that of the splits before it.
inline void fold(float peak, float total, const float* acc, int64_t head_dim, float* all_peak, float* all_total,
                 float* all_acc) {
  const float new_peak = peak > *all_peak ? peak : *all_peak;
  const float keep = first(exp2v(set1(*all_peak - new_peak))), take = first(exp2v(set1(peak - new_peak)));
  *all_total = *all_total * keep + total * take;
  *all_peak = new_peak;
  const vf k = set1(keep), t = set1(take);
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(all_acc + d, fma(load(acc + d), t, mul(load(all_acc + d), k)));
  if (d < head_dim) {
    const int64_t n = head_dim - d;
    store_n(all_acc + d, fma(load_n(acc + d, n), t, mul(load_n(all_acc + d, n), k)), n);
  }
}

inline void forget(int64_t rows, int64_t head_dim, AttentionScratch& s) {
  for (int64_t row = 0; row < rows; ++row) s.all_peak[row] = -__builtin_inff(), s.all_total[row] = 0;
  __builtin_memset(s.all_acc, 0, sizeof(float) * static_cast<uint64_t>(rows * head_dim));
}

template <class T>
inline void write_rows(const AttentionArgs& a, const AttentionItem& item, const AttentionScratch& s) {
  for (int64_t row = 0; row < item.rows(); ++row) {
    T* out = static_cast<T*>(a.out) +
             ((item.first_token + row / item.heads) * a.q_heads + item.first_head + row % item.heads) * a.head_dim;
    const float* acc = s.all_acc + row * a.head_dim;
    const vf total = set1(s.all_total[row]);
    int64_t d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) store(out + d, div(load(acc + d), total));
    if (d < a.head_dim) store_n(out + d, div(load_n(acc + d, a.head_dim - d), total), a.head_dim - d);
  }
}

// All splits of an item, one after the other.
template <class T>
void attend_of(const AttentionArgs& a, const AttentionItem& item, float* scratch) {
  AttentionScratch s(scratch, a.head_dim);
  load_queries<T>(a, item, s.query);
  forget(item.rows(), a.head_dim, s);
  for (int64_t split = item.first_split; split < item.end_split; ++split) {
    const RowRange rows = attend_split<T>(a, item, split, s);
    for (int64_t row = rows.begin; row < rows.end; ++row)
      fold(s.peak[row], s.total[row], s.acc + row * a.head_dim, a.head_dim, s.all_peak + row, s.all_total + row,
           s.all_acc + row * a.head_dim);
  }
  write_rows<T>(a, item, s);
}

// One split of an item into partial [rows, 2 + D]: peak, total, acc; total 0 where a row sees nothing of it.
template <class T>
void attend_part_of(const AttentionArgs& a, const AttentionItem& item, int64_t split, float* partial, float* scratch) {
  AttentionScratch s(scratch, a.head_dim);
  load_queries<T>(a, item, s.query);
  const RowRange seen = attend_split<T>(a, item, split, s);
  for (int64_t row = 0; row < item.rows(); ++row, partial += 2 + a.head_dim) {
    partial[1] = 0;
    if (row < seen.begin || row >= seen.end) continue;
    partial[0] = s.peak[row];
    partial[1] = s.total[row];
    __builtin_memcpy(partial + 2, s.acc + row * a.head_dim, sizeof(float) * static_cast<uint64_t>(a.head_dim));
  }
}

// Folds the partial states [splits, rows, 2 + D] of an item and writes its output.
template <class T>
void combine_of(const AttentionArgs& a, const AttentionItem& item, const float* partial, float* scratch) {
  AttentionScratch s(scratch, a.head_dim);
  forget(item.rows(), a.head_dim, s);
  for (int64_t split = item.first_split; split < item.end_split; ++split)
    for (int64_t row = 0; row < item.rows(); ++row, partial += 2 + a.head_dim)
      if (partial[1] != 0)  // NaN counts as seen
        fold(partial[0], partial[1], partial + 2, a.head_dim, s.all_peak + row, s.all_total + row,
             s.all_acc + row * a.head_dim);
  write_rows<T>(a, item, s);
}

void attend(const AttentionArgs& a, const AttentionItem& item, float* scratch) {
  a.dtype == kBFloat16 ? attend_of<bf16>(a, item, scratch) : attend_of<float>(a, item, scratch);
}
void attend_part(const AttentionArgs& a, const AttentionItem& item, int64_t split, float* partial, float* scratch) {
  a.dtype == kBFloat16 ? attend_part_of<bf16>(a, item, split, partial, scratch)
                       : attend_part_of<float>(a, item, split, partial, scratch);
}
void combine(const AttentionArgs& a, const AttentionItem& item, const float* partial, float* scratch) {
  a.dtype == kBFloat16 ? combine_of<bf16>(a, item, partial, scratch) : combine_of<float>(a, item, partial, scratch);
}
