// exp and what is built on it. Included inside the namespace of one instruction set.

// 2^x to about 1 ulp: x = n + f, |f| <= 1/2, and a polynomial for 2^f (Cephes' exp2f). 0 under the normal range; NaN
// stays NaN.
QUIRE_INLINE vf exp2v(vf x) {
  const vf lowest = set1(-126.0f);
  const vf bounded = vmin(set1(127.0f), vmax(lowest, x));  // this order of arguments lets NaN through
  const vf whole = round_even(bounded), f = sub(bounded, whole);
  vf p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  p = fma(p, f, set1(1.0f));
  return zero_below(mul(p, pow2i(whole)), x, lowest);
}

// e^x for x in [-87, 88], to which others are drawn. x·log2(e) is split in a high and a low part, so that large |x|
// keep their precision.
QUIRE_INLINE vf expv(vf x) {
  x = vmin(set1(88.0f), vmax(set1(-87.0f), x));  // this order of arguments lets NaN through
  const vf log2e = set1(1.44269504f);
  const vf high = mul(x, log2e), low = fma(x, log2e, sub(zero(), high));
  const vf power = exp2v(high);
  return fma(power, mul(low, set1(0.693147182f)), power);
}

QUIRE_INLINE vf silu(vf x) { return div(x, add(set1(1.0f), expv(sub(zero(), x)))); }
