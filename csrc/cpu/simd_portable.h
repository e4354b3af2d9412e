// Vectors of 4 floats in the compiler's own vector types: any CPU. Included inside the namespace of one instruction
// set.

constexpr int kLanes = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

QUIRE_INLINE vf zero() { return vf{0, 0, 0, 0}; }
QUIRE_INLINE vf set1(float x) { return vf{x, x, x, x}; }
QUIRE_INLINE vf add(vf a, vf b) { return a + b; }
QUIRE_INLINE vf sub(vf a, vf b) { return a - b; }
QUIRE_INLINE vf mul(vf a, vf b) { return a * b; }
QUIRE_INLINE vf div(vf a, vf b) { return a / b; }
QUIRE_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // rounds twice; contraction is off, so it always does
QUIRE_INLINE vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
QUIRE_INLINE vf vmax(vf a, vf b) { return pick(a > b, a, b); }  // b where either is NaN
QUIRE_INLINE vf vmin(vf a, vf b) { return pick(a < b, a, b); }  // b where either is NaN
QUIRE_INLINE vf round_even(vf a) {                              // for |a| < 2^22
  const vf shift = set1(12582912.0f);
  return (a + shift) - shift;
}
QUIRE_INLINE vf pow2i(vf n) {  // 2^n for whole n in [-126, 127]
  vi bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = (static_cast<int32_t>(n[i]) + 127) << 23;
  return (vf)bits;
}
QUIRE_INLINE vf zero_below(vf a, vf x, vf limit) { return pick(x < limit, zero(), a); }  // a, but 0 where x < limit
QUIRE_INLINE vf keep_lanes(vf a, int64_t low, int64_t high,
                           vf other) {  // a in lanes [low, high), which may lie outside
  for (int i = 0; i < kLanes; ++i)
    if (i >= low && i < high) other[i] = a[i];
  return other;
}

QUIRE_INLINE vf load(const float* p) {
  vf a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
QUIRE_INLINE vf load_n(const float* p, int64_t n) {
  vf a = zero();
  for (int i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
QUIRE_INLINE void store(float* p, vf a) { __builtin_memcpy(p, &a, sizeof a); }
QUIRE_INLINE void store_n(float* p, vf a, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = a[i];
}

QUIRE_INLINE float widen(bf16 a) {
  const uint32_t bits = static_cast<uint32_t>(a.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}
QUIRE_INLINE bf16 narrow(float a) {  // to nearest even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &a, sizeof bits);
  bits = a != a ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16)};
}
QUIRE_INLINE vf bf16_rounded(vf a) {
  for (int i = 0; i < kLanes; ++i) a[i] = widen(narrow(a[i]));
  return a;
}
QUIRE_INLINE vf load_n(const bf16* p, int64_t n) {
  vf a = zero();
  for (int i = 0; i < n; ++i) a[i] = widen(p[i]);
  return a;
}
QUIRE_INLINE vf load(const bf16* p) { return vf{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
QUIRE_INLINE void store_n(bf16* p, vf a, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = narrow(a[i]);
}
QUIRE_INLINE void store(bf16* p, vf a) { store_n(p, a, kLanes); }

QUIRE_INLINE float sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
QUIRE_INLINE float first(vf a) { return a[0]; }

// Lane i of the result = a[i]'s lanes joined by `op`, in the order of sum().
template <class Op>
QUIRE_INLINE vf join_rows(const vf* a, const Op& op) {
  vf column[kLanes];
  for (int i = 0; i < kLanes; ++i) column[i] = vf{a[0][i], a[1][i], a[2][i], a[3][i]};
  return op(op(column[0], column[2]), op(column[1], column[3]));
}

QUIRE_INLINE void transpose(vf* a) {  // a[i] lane j <-> a[j] lane i
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float t = a[i][j];
      a[i][j] = a[j][i];
      a[j][i] = t;
    }
}

// What a query and a key meet in: 32 bits, here always one float.
template <class T>
struct Unit {
  static constexpr int kElements = 1;
  static vf load(const T* p) { return QUIRE_ISA::load(p); }  // kLanes units
  static vf load_n(const T* p, int64_t n) { return QUIRE_ISA::load_n(p, n); }
  static vf add_product(vf sum, vf a, vf b) { return fma(a, b, sum); }
};

template <class T>
struct Dot {
  static constexpr int kStep = kLanes;  // elements a step
  using Pack = vf;
  static Pack load(const T* p) { return QUIRE_ISA::load(p); }
  static Pack load_n(const T* p, int64_t n) { return QUIRE_ISA::load_n(p, n); }
  static vf add_product(vf sum, Pack a, Pack b) { return fma(a, b, sum); }
};
