// The scan, sixteen channels at a time. Included after a level's simd.h.
//
// Operations: each of tokens x channels x state values needs an exponential (15 of them) and three multiply-adds; at
// AVX2's two a cycle that is about 9 cycles for 8 values. Memory: 5 floats of a row for every 16 x state of those
// operations, so that arithmetic is the limit. The states and `a` of a strip of channels are 2 KB and stay in the first
// cache for `kScanTokens`, whose rows stay in the second until all strips have passed: rows come as whole pages.
#pragma once
#include "math_kernel.h"
#include "scan.h"

namespace headway {
namespace {

constexpr int64_t kScanTokens = 32;

// 2^x within 1e-7, clamped to -125 <= x <= 126; NaN stays NaN.
HEADWAY_INLINE F power_of_two(F x) {
  x = min(set1(126.0f), max(set1(-125.0f), x));
  const I n = to_int(x);
  const F r = x - to_float(n);
  F p = set1(1.535336188319500e-4f);
  p = fma(p, r, set1(1.339887440266574e-3f));
  p = fma(p, r, set1(9.618437357674640e-3f));
  p = fma(p, r, set1(5.550332471162809e-2f));
  p = fma(p, r, set1(2.402264791363012e-1f));
  p = fma(p, r, set1(6.931472028550421e-1f));
  return from_bits(bits(fma(p, r, set1(1.0f))) + shift_left(n, 23));
}

// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3. Relative error 2e-7.
HEADWAY_INLINE F soft_plus(F x) {
  const F e = exponential(set1(0.0f) - from_bits(bits(x) & set1i(0x7fffffff)));
  const F s = e / (e + set1(2.0f)), q = s * s;
  F p = set1(2.0f / 13.0f);
  p = fma(p, q, set1(2.0f / 11.0f));
  p = fma(p, q, set1(2.0f / 9.0f));
  p = fma(p, q, set1(2.0f / 7.0f));
  p = fma(p, q, set1(2.0f / 5.0f));
  p = fma(p, q, set1(2.0f / 3.0f));
  p = fma(p, q, set1(2.0f));
  return fma(p, s, max(set1(0.0f), x));
}

HEADWAY_INLINE F silu(F x) { return x / (exponential(set1(0.0f) - x) + set1(1.0f)); }

HEADWAY_INLINE void store_n(float* p, F x, int n) {
  if (n == 16) store(p, x);
  else store_part(p, x, n);
}

// `n` channels from `at`, tokens [begin, end).
HEADWAY_INLINE void scan_strip(const ScanArgs* s, int64_t at, int n, int64_t begin, int64_t end) {
  const int64_t state = s->state, lda = s->lda;
  float* h = s->h + at * state;
  const float* a = s->a + at;
  const F d = load_n(s->d + at, n);
  for (int64_t t = begin; t < end; ++t) {
    const F x = load_n(s->u + t * s->ldu + at, n);
    F step = load_n(s->dt + t * s->lddt + at, n);
    if (s->softplus) step = soft_plus(step);
    const F fed = step * x;
    const float *b = s->b + t * s->ldb, *c = s->c + t * s->ldc;
    F y = d * x;
    for (int64_t k = 0; k < state; ++k) {
      const F now = fma(power_of_two(step * load(a + k * lda)), load(h + k * 16), fed * set1(b[k]));
      store(h + k * 16, now);
      y = fma(now, set1(c[k]), y);
    }
    if (s->added) y = y + load_n(s->added + t * s->ldadded + at, n);
    if (s->gate) y = y * silu(load_n(s->gate + t * s->ldgate + at, n));
    store_n(s->y + t * s->ldy + at, y, n);
  }
}

static void scan(const ScanArgs* s) {
  for (int64_t t = 0; t < s->tokens; t += kScanTokens) {
    const int64_t end = t + kScanTokens < s->tokens ? t + kScanTokens : s->tokens;
    for (int64_t at = 0; at < s->channels; at += 16)
      if (s->channels - at >= 16) scan_strip(s, at, 16, t, end);
      else scan_strip(s, at, (int)(s->channels - at), t, end);
  }
}

static void filter(const FilterArgs* f) {
  for (int64_t t = 0; t < f->tokens; ++t) {
    const int64_t known = f->before + t + 1 < f->taps ? f->before + t + 1 : f->taps;
    for (int64_t at = 0; at < f->channels; at += 16) {
      const int n = f->channels - at < 16 ? (int)(f->channels - at) : 16;
      F y = f->bias ? load_n(f->bias + at, n) : zero();
      for (int64_t lag = 0; lag < known; ++lag)
        y = fma(load_n(f->x + (t - lag) * f->ldx + at, n), load_n(f->w + (f->taps - 1 - lag) * f->channels + at, n), y);
      store_n(f->y + t * f->ldy + at, f->silu ? silu(y) : y, n);
    }
  }
}

}  // namespace
}  // namespace headway

#define HEADWAY_SCAN(name)                  \
  namespace headway {                       \
  extern const ScanKernels name;            \
  const ScanKernels name = {scan, filter};  \
  }
