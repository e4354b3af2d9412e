// Vectors of 16 floats. Included inside the namespace of one instruction set.

constexpr int kLanes = 16;
using vf = __m512;

QUIRE_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

QUIRE_INLINE vf zero() { return _mm512_setzero_ps(); }
QUIRE_INLINE vf set1(float x) { return _mm512_set1_ps(x); }
QUIRE_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
QUIRE_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
QUIRE_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
QUIRE_INLINE vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
QUIRE_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
QUIRE_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }  // b where either is NaN
QUIRE_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }  // b where either is NaN
QUIRE_INLINE vf round_even(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QUIRE_INLINE vf pow2i(vf n) {  // 2^n for whole n in [-126, 127]
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
QUIRE_INLINE vf zero_below(vf a, vf x, vf limit) {  // a, but 0 where x < limit
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), zero());
}
QUIRE_INLINE vf keep_lanes(vf a, int64_t low, int64_t high,
                           vf other) {  // a in lanes [low, high), which may lie outside
  low = low < 0 ? 0 : low > kLanes ? kLanes : low;
  high = high < low ? low : high > kLanes ? kLanes : high;
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>(first_lanes(high) & ~first_lanes(low)), a);
}

QUIRE_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
QUIRE_INLINE vf load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
QUIRE_INLINE void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
QUIRE_INLINE void store_n(float* p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }

QUIRE_INLINE vf widen(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
QUIRE_INLINE __m256i narrow(vf a) {  // to nearest even; NaN stays NaN
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
QUIRE_INLINE vf bf16_rounded(vf a) { return widen(narrow(a)); }
QUIRE_INLINE vf load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
QUIRE_INLINE vf load_n(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
QUIRE_INLINE void store(bf16* p, vf a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
QUIRE_INLINE void store_n(bf16* p, vf a, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a)); }

// The sum of a's lanes i, i+8, then i, i+4, then i, i+2, then i, i+1: the tree that join_rows follows too.
QUIRE_INLINE float sum(vf a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
QUIRE_INLINE float first(vf a) { return _mm512_cvtss_f32(a); }

// Lane i of the result = a[i]'s lanes joined by `op`, in the order of sum().
template <class Op>
QUIRE_INLINE vf join_rows(const vf* a, const Op& op) {
  const auto quarters = [&op](vf p, vf q, vf r, vf s) {  // [p, q, r, s], each joined over its 128-bit lanes
    const vf pq = op(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xee));
    const vf rs = op(_mm512_shuffle_f32x4(r, s, 0x44), _mm512_shuffle_f32x4(r, s, 0xee));
    return op(_mm512_shuffle_f32x4(pq, rs, 0x88), _mm512_shuffle_f32x4(pq, rs, 0xdd));
  };
  const vf r0 = quarters(a[0], a[4], a[8], a[12]), r1 = quarters(a[1], a[5], a[9], a[13]);
  const vf r2 = quarters(a[2], a[6], a[10], a[14]), r3 = quarters(a[3], a[7], a[11], a[15]);
  const vf s01 = op(_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
  const vf s23 = op(_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
  return op(_mm512_shuffle_ps(s01, s23, 0x44), _mm512_shuffle_ps(s01, s23, 0xee));
}

QUIRE_INLINE void transpose(vf* a) {  // a[i] lane j <-> a[j] lane i
  vf b[16];
  for (int i = 0; i < 16; i += 4) {
    const vf t0 = _mm512_unpacklo_ps(a[i], a[i + 1]), t1 = _mm512_unpackhi_ps(a[i], a[i + 1]);
    const vf t2 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), t3 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
    b[i] = _mm512_shuffle_ps(t0, t2, 0x44);
    b[i + 1] = _mm512_shuffle_ps(t0, t2, 0xee);
    b[i + 2] = _mm512_shuffle_ps(t1, t3, 0x44);
    b[i + 3] = _mm512_shuffle_ps(t1, t3, 0xee);
  }
  for (int i = 0; i < 4; ++i) {  // b[i + 4g] holds, in 128-bit lane q, column 4q + i of rows 4g..4g+3
    const vf t0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), t1 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const vf t2 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88), t3 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    a[i] = _mm512_shuffle_f32x4(t0, t2, 0x88);
    a[i + 4] = _mm512_shuffle_f32x4(t1, t3, 0x88);
    a[i + 8] = _mm512_shuffle_f32x4(t0, t2, 0xdd);
    a[i + 12] = _mm512_shuffle_f32x4(t1, t3, 0xdd);
  }
}

template <class T>
struct Dot;

template <>
struct Dot<float> {
  static constexpr int kStep = 16;  // elements a step
  using Pack = vf;
  static Pack load(const float* p) { return _mm512_loadu_ps(p); }
  static Pack load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static vf add_product(vf sum, Pack a, Pack b) { return fma(a, b, sum); }
};

// What a query and a key meet in: 32 bits, one float or a pair of bf16.
template <class T>
struct Unit {
  static constexpr int kElements = 1;
  static vf load(const T* p) { return QUIRE_ISA::load(p); }  // kLanes units
  static vf load_n(const T* p, int64_t n) { return QUIRE_ISA::load_n(p, n); }
  static vf add_product(vf sum, vf a, vf b) { return fma(a, b, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Unit<bf16> {
  static constexpr int kElements = 2;
  static vf load(const bf16* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static vf load_n(const bf16* p, int64_t n) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p));
  }
  static vf add_product(vf sum, vf a, vf b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

template <>
struct Dot<bf16> {
  static constexpr int kStep = 32;
  using Pack = __m512i;
  static Pack load(const bf16* p) { return _mm512_loadu_si512(p); }
  static Pack load_n(const bf16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  static vf add_product(vf sum, Pack a, Pack b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#else
template <>
struct Dot<bf16> {
  static constexpr int kStep = 32;
  struct Pack {
    vf even, odd;
  };
  static Pack split(__m512i a) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_and_si512(a, high))};
  }
  static Pack load(const bf16* p) { return split(_mm512_loadu_si512(p)); }
  static Pack load_n(const bf16* p, int64_t n) {
    return split(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p));
  }
  static vf add_product(vf sum, Pack a, Pack b) { return fma(a.odd, b.odd, fma(a.even, b.even, sum)); }
};
#endif
