// Functions of sixteen numbers at once that several kernels use. Included after a level's simd.h.
#pragma once
#include <stdint.h>

namespace headway {
namespace {

constexpr float kInfinity = __builtin_inff();

// e^x within 2 ulp for -87 <= x <= 88, clamped outside; exactly 1 at 0; NaN stays NaN.
HEADWAY_INLINE F exponential(F x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const F n = to_float(to_int(x * set1(1.44269504088896341f)));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  return p * from_bits(shift_left(to_int(n) + set1i(127), 23));
}

// 1 - 2 / (e^2x + 1), within 1e-7 absolute.
HEADWAY_INLINE F hyperbolic_tangent(F x) {
  return set1(1.0f) - set1(2.0f) / (exponential(x + x) + set1(1.0f));
}

template <class Function> HEADWAY_INLINE void each(float* x, int64_t n, Function f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, f(load(x + i), i, 16));
  if (i < n) store_part(x + i, f(load_part(x + i, (int)(n - i)), i, (int)(n - i)), (int)(n - i));
}
HEADWAY_INLINE F load_n(const float* p, int n) { return n == 16 ? load(p) : load_part(p, n); }

HEADWAY_INLINE F clamp(F v, float low, float high) { return min(set1(high), max(set1(low), v)); }

// x/2 erfc(-x / sqrt 2), by the rational form of Abramowitz and Stegun 7.1.26 (1.5e-7): one side is x less the other,
// so that neither loses digits.
HEADWAY_INLINE F gelu_erf(F x) {
  const F size = from_bits(bits(x) & set1i(0x7fffffff));
  const F t = set1(1.0f) / fma(size, set1(0.3275911f * 0.70710678f), set1(1.0f));
  F p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  const F tail = set1(0.5f) * x * (p * t) * exponential(set1(-0.5f) * x * x);
  return where_less(bits(x), set1i(0), tail, x - tail);
}

HEADWAY_INLINE F gelu_tanh(F x) {
  const F cubic = fma(x * x * x, set1(0.044715f), x);
  return set1(0.5f) * x * (set1(1.0f) + hyperbolic_tangent(cubic * set1(0.7978845608028654f)));
}

}  // namespace
}  // namespace headway
