// out = x @ w^T + bias, as dot products of rows: no packing, accumulators run along K.
//
// Each output is accumulated in one fixed order whatever M, the row's place, the tile it falls into or the thread:
// K is cut into blocks of kBlockK elements at fixed places; in a block, lane l of one vector accumulator takes the
// l-th element (or pair) of each step; the lanes are added in the fixed tree of sum(); block sums are added in order;
// the bias comes last. Tile shapes only change how many outputs are worked on at once.
//
// Included inside the namespace of one instruction set.

template <class T>
constexpr int64_t kBlockK = 4096 / static_cast<int64_t>(sizeof(T));  // a w panel's block fits half of a 48 KiB L1

constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// sums[m * NR + n] = x[m, :k] · w[n, :k]. Room for round_up(MR * NR, kLanes) floats.
// Meanwhile asks for kLines cache lines a step from `ahead` on, memory that the caller reads later.
template <class T, int MR, int NR, int kLines>
inline void dot_tile(const T* x, int64_t ldx, const T* w, int64_t ldw, int64_t k, const char* ahead, float* sums) {
  using D = Dot<T>;
  vf acc[round_up(MR * NR, kLanes)];
  for (vf& a : acc) a = zero();
  int64_t i = 0;
  for (; i + D::kStep <= k; i += D::kStep) {
    typename D::Pack rows[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) rows[m] = D::load(x + m * ldx + i);
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
      const typename D::Pack column = D::load(w + n * ldw + i);
      if (n < kLines) __builtin_prefetch(ahead + n * D::kStep * sizeof(T), 0, 3);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) acc[m * NR + n] = D::add_product(acc[m * NR + n], rows[m], column);
    }
    ahead += kLines * D::kStep * sizeof(T);
  }
  if (i < k) {
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
      const typename D::Pack column = D::load_n(w + n * ldw + i, k - i);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
        acc[m * NR + n] = D::add_product(acc[m * NR + n], D::load_n(x + m * ldx + i, k - i), column);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR * NR; r += kLanes) store(sums + r, join_rows(acc + r, add));
}

// One x-row-block × w-panel product over K block `block`; partial sums wait in `partial` [MR, ld_partial] between
// blocks.
template <class T, int MR, int NR, int kLines>
inline void linear_tile(const LinearArgs& a, int64_t m, int64_t n, int64_t block, const char* ahead, float* partial,
                        int64_t ld_partial) {
  const int64_t k0 = block * kBlockK<T>, left = a.k - k0;
  const bool last = left <= kBlockK<T>;
  float sums[round_up(MR * NR, kLanes) + kLanes];
  dot_tile<T, MR, NR, kLines>(static_cast<const T*>(a.x) + m * a.x_stride + k0, a.x_stride,
                              static_cast<const T*>(a.w) + n * a.w_stride + k0, a.w_stride, last ? left : kBlockK<T>,
                              ahead, sums);
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + n : nullptr;
  T* out = static_cast<T*>(a.out) + m * a.out_stride + n;
  for (int r = 0; r < MR; ++r) {
    for (int c = 0; c < NR; c += kLanes) {
      const int count = NR - c < kLanes ? NR - c : kLanes;
      vf value = load(sums + r * NR + c);
      if (block > 0) value = add(load_n(partial + r * ld_partial + c, count), value);
      if (!last) {
        store_n(partial + r * ld_partial + c, value, count);
        continue;
      }
      if (bias) value = add(value, load_n(bias + c, count));
      store_n(out + r * a.out_stride + c, value, count);
    }
  }
}

template <class T, int NR, int kLines>
inline void linear_rows(const LinearArgs& a, int64_t rows, int64_t m, int64_t n, int64_t block, const char* ahead,
                        float* partial, int64_t ld) {
  switch (rows) {
    case 1:
      return linear_tile<T, 1, NR, kLines>(a, m, n, block, ahead, partial, ld);
    case 2:
      return linear_tile<T, 2, NR, kLines>(a, m, n, block, ahead, partial, ld);
    case 3:
      return linear_tile<T, 3, NR, kLines>(a, m, n, block, ahead, partial, ld);
    default:
      return linear_tile<T, 4, NR, kLines>(a, m, n, block, ahead, partial, ld);
  }
}

// All rows [m0, m1) against NR columns from n, over one K block. Meanwhile the next panel is fetched, evenly over the
// row tiles, so that memory is never idle.
template <class T, int NR, int kLines>
inline void linear_panel_fetching(const LinearArgs& a, int64_t m0, int64_t m1, int64_t n, int64_t block, float* partial,
                                  int64_t ld) {
  const int64_t width = a.k - block * kBlockK<T> < kBlockK<T> ? a.k - block * kBlockK<T> : kBlockK<T>;
  const char* const next =
      static_cast<const char*>(a.w) + ((n + NR) * a.w_stride + block * kBlockK<T> * NR) * sizeof(T);
  const char* ahead = next;
  for (int64_t m = m0; m < m1; m += kTileRows, partial += kTileRows * ld) {
    const int64_t rows = m1 - m < kTileRows ? m1 - m : kTileRows;
    if ((m - m0) / kTileRows * kLines < NR)
      linear_rows<T, NR, kLines>(a, rows, m, n, block, ahead, partial, ld);
    else
      linear_rows<T, NR, 0>(a, rows, m, n, block, ahead, partial, ld);
    ahead += kLines * width * sizeof(T);
  }
}

template <class T, int NR>
inline void linear_panel(const LinearArgs& a, int64_t m0, int64_t m1, int64_t n, int64_t block, float* partial,
                         int64_t ld) {
  const int64_t tiles = (m1 - m0 + kTileRows - 1) / kTileRows;
  if (tiles == 1) return linear_panel_fetching<T, NR, NR>(a, m0, m1, n, block, partial, ld);
  if (tiles == 2) return linear_panel_fetching<T, NR, (NR + 1) / 2>(a, m0, m1, n, block, partial, ld);
  if (tiles < 6) return linear_panel_fetching<T, NR, (NR + 2) / 3>(a, m0, m1, n, block, partial, ld);
  return linear_panel_fetching<T, NR, (NR + 5) / 6>(a, m0, m1, n, block, partial, ld);
}

template <class T>
void linear_of(const LinearArgs& a, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  const int64_t blocks = a.k > 0 ? (a.k + kBlockK<T> - 1) / kBlockK<T> : 1;
  // While x fits in L2, a panel's K blocks follow each other, so that w is read as it lies. Else one K block of x stays
  // there.
  const bool x_fits = (m1 - m0) * a.k * static_cast<int64_t>(sizeof(T)) <= kL2Bytes / 2;
  const int64_t group = x_fits ? kTileCols : kGroupCols;
  for (int64_t g = n0; g < n1; g += group) {
    const int64_t end = g + group < n1 ? g + group : n1;
    for (int64_t block = 0; block < blocks; ++block) {
      int64_t n = g;
      for (; n + kTileCols <= end; n += kTileCols)
        linear_panel<T, kTileCols>(a, m0, m1, n, block, scratch + n - g, kGroupCols);
      for (; n < end; ++n) linear_panel<T, 1>(a, m0, m1, n, block, scratch + n - g, kGroupCols);
    }
  }
}

// Rows [m0, m1) and columns [n0, n1) of the product. scratch: (m1 - m0) * kGroupCols floats.
void linear(const LinearArgs& a, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  if (a.dtype == kBFloat16)
    linear_of<bf16>(a, m0, m1, n0, n1, scratch);
  else
    linear_of<float>(a, m0, m1, n0, n1, scratch);
}
