// Vectors of 8 floats. Included inside the namespace of one instruction set.

constexpr int kLanes = 8;
using vf = __m256;

QUIRE_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

QUIRE_INLINE vf zero() { return _mm256_setzero_ps(); }
QUIRE_INLINE vf set1(float x) { return _mm256_set1_ps(x); }
QUIRE_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
QUIRE_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
QUIRE_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
QUIRE_INLINE vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
QUIRE_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
QUIRE_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }  // b where either is NaN
QUIRE_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }  // b where either is NaN
QUIRE_INLINE vf round_even(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QUIRE_INLINE vf pow2i(vf n) {  // 2^n for whole n in [-126, 127]
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
QUIRE_INLINE vf zero_below(vf a, vf x, vf limit) {  // a, but 0 where x < limit
  return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), a);
}
QUIRE_INLINE vf keep_lanes(vf a, int64_t low, int64_t high,
                           vf other) {  // a in lanes [low, high), which may lie outside
  low = low < 0 ? 0 : low > kLanes ? kLanes : low;
  high = high < 0 ? 0 : high > kLanes ? kLanes : high;
  const __m256i keep = _mm256_andnot_si256(first_lanes(low), first_lanes(high));
  return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(keep));
}

QUIRE_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
QUIRE_INLINE vf load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
QUIRE_INLINE void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
QUIRE_INLINE void store_n(float* p, vf a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a); }

QUIRE_INLINE vf widen(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
QUIRE_INLINE __m128i narrow(vf a) {  // to nearest even; NaN stays NaN
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
QUIRE_INLINE vf bf16_rounded(vf a) { return widen(narrow(a)); }
QUIRE_INLINE vf load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
QUIRE_INLINE vf load_n(const bf16* p, int64_t n) {
  alignas(16) bf16 copy[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) copy[i] = p[i];
  return load(copy);
}
QUIRE_INLINE void store(bf16* p, vf a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a)); }
QUIRE_INLINE void store_n(bf16* p, vf a, int64_t n) {
  alignas(16) bf16 copy[kLanes];
  store(copy, a);
  for (int64_t i = 0; i < n; ++i) p[i] = copy[i];
}

// The sum of a's lanes i, i+4, then i, i+2, then i, i+1: the tree that join_rows follows too.
QUIRE_INLINE float sum(vf a) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
QUIRE_INLINE float first(vf a) { return _mm256_cvtss_f32(a); }

// Lane i of the result = a[i]'s lanes joined by `op`, in the order of sum().
template <class Op>
QUIRE_INLINE vf join_rows(const vf* a, const Op& op) {
  const auto halves = [&op](vf p, vf q) {  // [p, q], each joined over its 128-bit lanes
    return op(_mm256_permute2f128_ps(p, q, 0x20), _mm256_permute2f128_ps(p, q, 0x31));
  };
  const vf r0 = halves(a[0], a[4]), r1 = halves(a[1], a[5]), r2 = halves(a[2], a[6]), r3 = halves(a[3], a[7]);
  const vf s01 = op(_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
  const vf s23 = op(_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
  return op(_mm256_shuffle_ps(s01, s23, 0x44), _mm256_shuffle_ps(s01, s23, 0xee));
}

QUIRE_INLINE void transpose(vf* a) {  // a[i] lane j <-> a[j] lane i
  vf b[8];
  for (int i = 0; i < 8; i += 4) {
    const vf t0 = _mm256_unpacklo_ps(a[i], a[i + 1]), t1 = _mm256_unpackhi_ps(a[i], a[i + 1]);
    const vf t2 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), t3 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
    b[i] = _mm256_shuffle_ps(t0, t2, 0x44);
    b[i + 1] = _mm256_shuffle_ps(t0, t2, 0xee);
    b[i + 2] = _mm256_shuffle_ps(t1, t3, 0x44);
    b[i + 3] = _mm256_shuffle_ps(t1, t3, 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    a[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
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
struct Dot;

template <>
struct Dot<float> {
  static constexpr int kStep = 8;  // elements a step
  using Pack = vf;
  static Pack load(const float* p) { return _mm256_loadu_ps(p); }
  static Pack load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
  static vf add_product(vf sum, Pack a, Pack b) { return fma(a, b, sum); }
};

template <>
struct Dot<bf16> {
  static constexpr int kStep = 16;
  struct Pack {
    vf even, odd;
  };
  static Pack load(const bf16* p) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_and_si256(a, high))};
  }
  static Pack load_n(const bf16* p, int64_t n) {
    alignas(32) bf16 copy[kStep] = {};
    for (int64_t i = 0; i < n; ++i) copy[i] = p[i];
    return load(copy);
  }
  static vf add_product(vf sum, Pack a, Pack b) { return fma(a.odd, b.odd, fma(a.even, b.even, sum)); }
};
