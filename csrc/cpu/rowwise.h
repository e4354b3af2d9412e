// Operators that work on one row at a time: norms, SiLU·mul, rotary, greedy. A row's result depends on that row alone.
//
// Included inside the namespace of one instruction set.

constexpr int kChains = 4;  // independent sums, to hide the latency of an addition

// Σ f(x[i]) over i < n in one fixed order.
template <class T, class F>
inline float sum_over(const T* x, int64_t n, const F& f) {
  vf acc[kChains] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
    for (int c = 0; c < kChains; ++c) acc[c] = add(acc[c], f(load(x + i + c * kLanes)));
  for (; i + kLanes <= n; i += kLanes) acc[0] = add(acc[0], f(load(x + i)));
  if (i < n) acc[1] = add(acc[1], keep_lanes(f(load_n(x + i, n - i)), 0, n - i, zero()));
  return sum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

// out[i] = f(a[i], b[i]) for i < n, rounded to T.
template <class T, class F>
inline void map2(const T* a, const T* b, T* out, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(a + i), load(b + i)));
  if (i < n) store_n(out + i, f(load_n(a + i, n - i), load_n(b + i, n - i)), n - i);
}

// a as it is after rounding to T.
inline vf rounded(vf a, const float*) { return a; }
inline vf rounded(vf a, const bf16*) { return bf16_rounded(a); }

template <class T>
inline void rms_norm_row(const T* x, const T* weight, T* out, int64_t n, double eps) {
  const float squares = sum_over(x, n, [](vf v) { return mul(v, v); });
  const vf scale = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + static_cast<float>(eps)));
  map2(x, weight, out, n,
       [scale](vf v, vf w) { return mul(w, rounded(mul(v, scale), static_cast<const T*>(nullptr))); });
}

template <class T>
inline void layer_norm_row(const T* x, const T* weight, const T* bias, T* out, int64_t n, double eps) {
  const vf mean = set1(sum_over(x, n, [](vf v) { return v; }) / static_cast<float>(n));
  const float squares = sum_over(x, n, [mean](vf v) { return mul(sub(v, mean), sub(v, mean)); });
  const vf scale = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + static_cast<float>(eps)));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(out + i, fma(mul(sub(load(x + i), mean), scale), load(weight + i), load(bias + i)));
  if (i < n) {
    const int64_t left = n - i;
    const vf centred = mul(sub(load_n(x + i, left), mean), scale);
    store_n(out + i, fma(centred, load_n(weight + i, left), load_n(bias + i, left)), left);
  }
}

template <class T>
void norm_of(const NormArgs& a, int64_t begin, int64_t end) {
  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row / a.inner * a.outer_stride + row % a.inner * a.inner_stride;
    T* out = static_cast<T*>(a.out) + row * a.hidden;
    if (a.residual) {
      T* total = static_cast<T*>(a.residual) + row * a.hidden;
      map2(total, x, total, a.hidden, [](vf r, vf v) { return add(r, v); });
      x = total;
    }
    if (bias)
      layer_norm_row(x, weight, bias, out, a.hidden, a.eps);
    else
      rms_norm_row(x, weight, out, a.hidden, a.eps);
  }
}

void norm(const NormArgs& a, int64_t begin, int64_t end) {
  a.dtype == kBFloat16 ? norm_of<bf16>(a, begin, end) : norm_of<float>(a, begin, end);
}

template <class T>
void silu_mul_of(const SiluMulArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(a.x) + row * a.x_stride;
    map2(gate, gate + a.inner, static_cast<T*>(a.out) + row * a.inner, a.inner,
         [](vf g, vf up) { return mul(rounded(silu(g), static_cast<const T*>(nullptr)), up); });
  }
}

void silu_mul(const SiluMulArgs& a, int64_t begin, int64_t end) {
  a.dtype == kBFloat16 ? silu_mul_of<bf16>(a, begin, end) : silu_mul_of<float>(a, begin, end);
}

template <class T>
inline void rotate_head(T* x, const float* cos, const float* sin, int64_t half) {
  const auto rotate = [&](int64_t i, int64_t n) {
    const vf a = load_n(x + i, n), b = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(x + i, sub(mul(a, c), mul(b, s)), n);
    store_n(x + half + i, add(mul(b, c), mul(a, s)), n);
  };
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) rotate(i, kLanes);
  if (i < half) rotate(i, half - i);
}

template <class T>
void rotary_of(const RotaryArgs& a, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const float* cos = a.cos_sin + a.positions[token] * a.rot_dim;
    const float* sin = cos + a.rot_dim / 2;
    T *q = static_cast<T*>(a.q) + token * a.q_stride, *k = static_cast<T*>(a.k) + token * a.k_stride;
    for (int64_t head = 0; head < a.q_heads; ++head) rotate_head(q + head * a.q_head_stride, cos, sin, a.rot_dim / 2);
    for (int64_t head = 0; head < a.k_heads; ++head) rotate_head(k + head * a.k_head_stride, cos, sin, a.rot_dim / 2);
  }
}

void rotary(const RotaryArgs& a, int64_t begin, int64_t end) {
  a.dtype == kBFloat16 ? rotary_of<bf16>(a, begin, end) : rotary_of<float>(a, begin, end);
}

// The largest of x[0 .. n); `spoilt` becomes NaN when one of them is not finite.
template <class T>
inline float largest_of(const T* x, int64_t n, vf* spoilt) {
  const vf nothing = set1(-__builtin_inff());
  vf best = nothing;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf v = load(x + i);
    *spoilt = add(*spoilt, sub(v, v));  // 0, or NaN
    best = vmax(v, best);
  }
  if (i < n) {
    const vf v = load_n(x + i, n - i);
    *spoilt = add(*spoilt, sub(v, v));
    best = vmax(keep_lanes(v, 0, n - i, nothing), best);
  }
  float lanes[kLanes];
  store(lanes, best);
  float largest = lanes[0];
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

template <class T>
void greedy_of(const GreedyArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 1024;  // only the block that holds the largest is searched for its place
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.logits) + row * a.stride;
    vf spoilt = zero();
    float largest = -__builtin_inff();
    int64_t place = 0;
    for (int64_t at = 0; at < a.vocab; at += kBlock) {
      const float found = largest_of(x + at, a.vocab - at < kBlock ? a.vocab - at : kBlock, &spoilt);
      if (found > largest) largest = found, place = at;
    }
    while (place < a.vocab && first(load_n(x + place, 1)) != largest) ++place;
    a.out[row] = sum(spoilt) == 0 && place < a.vocab ? place : -1;
  }
}

void greedy(const GreedyArgs& a, int64_t begin, int64_t end) {
  a.dtype == kBFloat16 ? greedy_of<bf16>(a, begin, end) : greedy_of<float>(a, begin, end);
}
