// Everything of a layer that is no matrix and no attention. Included after a level's simd.h.
// A row of n floats is read once or twice from cache: none of these is seen in a step's time next to the weights.
#pragma once
#include "kernels.h"
#include "math_kernel.h"

namespace headway {
namespace {

static void rms_norm(const float* x, const float* w, float eps, int64_t n, float* y) {
  F squares = zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F v = load(x + i);
    squares = fma(v, v, squares);
  }
  if (i < n) {
    const F v = load_part(x + i, (int)(n - i));
    squares = fma(v, v, squares);
  }
  const F inverse = set1(1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps));
  for (i = 0; i + 16 <= n; i += 16) store(y + i, load(x + i) * inverse * load(w + i));
  if (i < n) {
    const int rest = (int)(n - i);
    store_part(y + i, load_part(x + i, rest) * inverse * load_part(w + i, rest), rest);
  }
}

static void add(float* x, const float* a, int64_t n) {
  each(x, n, [a](F v, int64_t i, int m) { return v + load_n(a + i, m); });
}

static void scale(float* x, float s, int64_t n) {
  each(x, n, [s](F v, int64_t, int) { return v * set1(s); });
}

static void softcap(float* x, float cap, int64_t n) {
  each(x, n, [cap](F v, int64_t, int) { return set1(cap) * hyperbolic_tangent(v / set1(cap)); });
}

// Pairs (j, j + half) turn by the angle whose cosine and sine are given, half = head_dim / 2.
static void rope(float* x, int64_t heads, int64_t head_dim, const float* cosine, const float* sine) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h, x += head_dim)
    for (int64_t j = 0; j < half; j += 16) {
      const int n = half - j < 16 ? (int)(half - j) : 16;
      const F a = load_n(x + j, n), b = load_n(x + half + j, n), c = load_n(cosine + j, n), s = load_n(sine + j, n);
      const F low = a * c - b * s, high = b * c + a * s;
      if (n == 16) {
        store(x + j, low);
        store(x + half + j, high);
      } else {
        store_part(x + j, low, n);
        store_part(x + half + j, high, n);
      }
    }
}

// Two passes: the mean, then the squares of what is left of it.
static void layer_norm(const float* x, const float* w, const float* b, float eps, int64_t n, float* y) {
  F total = zero(), squares = zero();
  const int64_t whole = n / 16 * 16;
  const int rest = (int)(n - whole);
  for (int64_t i = 0; i < whole; i += 16) total = total + load(x + i);
  if (rest) total = total + load_part(x + whole, rest);
  const F mean = set1(sum(total) / (float)n);
  for (int64_t i = 0; i < whole; i += 16) {
    const F v = load(x + i) - mean;
    squares = fma(v, v, squares);
  }
  if (rest) {
    float line[16];
    store(line, load_part(x + whole, rest) - mean);
    const F v = load_part(line, rest);
    squares = fma(v, v, squares);
  }
  const F inverse = set1(1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps));
  for (int64_t i = 0; i < whole; i += 16) store(y + i, fma((load(x + i) - mean) * inverse, load(w + i), load(b + i)));
  if (rest) {
    const F v = (load_part(x + whole, rest) - mean) * inverse;
    store_part(y + whole, fma(v, load_part(w + whole, rest), load_part(b + whole, rest)), rest);
  }
}

static void gelu(float* x, const float* bias, int64_t n, int kind) {
  if (kind == 0) each(x, n, [bias](F v, int64_t i, int m) { return gelu_erf(v + load_n(bias + i, m)); });
  else each(x, n, [bias](F v, int64_t i, int m) { return gelu_tanh(v + load_n(bias + i, m)); });
}

static void glu(float* gate, const float* up, int64_t n, int kind) {
  if (kind == 0)
    each(gate, n, [up](F v, int64_t i, int m) {
      return v / (set1(1.0f) + exponential(zero() - v)) * load_n(up + i, m);
    });
  else
    each(gate, n, [up](F v, int64_t i, int m) {
      return gelu_tanh(v) * load_n(up + i, m);
    });
}

static int64_t argmax(const float* x, int64_t n) {
  F best = set1(-kInfinity);
  bool bad = false;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F v = load(x + i);
    bad |= any_nan(v);
    best = max(best, v);
  }
  float top = highest(best);
  for (; i < n; ++i) {
    bad |= x[i] != x[i];
    if (x[i] > top) top = x[i];
  }
  if (bad) return -1;
  for (i = 0; i < n; ++i)
    if (x[i] == top) return i;
  return -1;
}

// ln sum e^x, in double over blocks of 1,024; NaN if any x is. `top` is the largest x.
static double log_sum_exp(const float* x, int64_t n, float* top) {
  F best = set1(-kInfinity);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) best = max(load(x + i), best);
  *top = highest(best);
  for (; i < n; ++i)
    if (x[i] > *top) *top = x[i];
  const float high = *top;
  double total = 0;
  for (i = 0; i < n;) {
    F part = zero();
    const int64_t end = n - i < 1024 ? n : i + 1024;
    for (; i + 16 <= end; i += 16) part = part + exponential(load(x + i) - set1(high));
    total += (double)sum(part);
    for (; i < end; ++i) total += __builtin_exp((double)(x[i] - high));
  }
  return (double)high + __builtin_log(total);
}

// KL(softmax x || softmax y) where `x_norm` and `y_norm` are their log_sum_exp.
static double divergence(const float* x, double x_norm, const float* y, double y_norm, int64_t n) {
  const double shift = x_norm - y_norm;  // taken off early: what is left to add up is small
  const F norm = set1((float)x_norm), apart = set1((float)shift);
  double total = 0;
  int64_t i = 0;
  while (i < n) {
    F part = zero();
    const int64_t end = n - i < 1024 ? n : i + 1024;
    for (; i + 16 <= end; i += 16) {
      const F a = load(x + i);
      part = fma(exponential(a - norm), a - load(y + i) - apart, part);
    }
    total += (double)sum(part);
    for (; i < end; ++i) total += __builtin_exp((double)x[i] - x_norm) * ((double)x[i] - (double)y[i] - shift);
  }
  return total > 0 || total != total ? total : 0;
}

// Two sums at once, 128 B a turn: as fast as this level reads.
static uint64_t read(const void* data, size_t bytes) {
  const float* p = (const float*)data;
  I a = set1i(0), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 256 <= bytes; i += 256, p += 64) {
    a = a + bits(load(p));
    b = b + bits(load(p + 16));
    c = c + bits(load(p + 32));
    d = d + bits(load(p + 48));
  }
  return (uint64_t)(uint32_t)sum(a + b + (c + d));
}

}  // namespace
}  // namespace headway
