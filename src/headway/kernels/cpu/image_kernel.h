// The source of one level's table of image.h. Included after a level's simd.h.
//
// Depthwise: one tile of 16 channels, its image in the cache with its padding, so that no pixel is a special case. Four
// pixels are summed together: a tap costs one load and one FMA each, and its weight one load for all four (AVX-512:
// none where K = 3, the taps stay in registers). Every output is a chain over all taps in order: the same bits at every
// level. Window: a product whose row of activations is the window's k runs of k x channels floats, read in place;
// kTileColumns pixels of a tile of 16 channels together, each tap loaded once and the activations broadcast.
//
// Depthwise, bytes: 64 a pixel in, from the first or second level, and 64 out. AVX2: per tap of four pixels 10 loads,
// two a cycle, for 8 FMAs: at most 0.8 of the FMA peak. Reached over EfficientNet-Lite0, one Zen 3 core of 97 GFLOP/s:
// 43 GFLOP/s of 78; 65 where K = 5 and rows are long, 25 where they have 7 pixels, of which one is summed twice.
// Window: per tap 2 loads and kTileColumns broadcasts for 2 kTileColumns FMAs (AVX2): the FMA units are the limit.
#pragma once
#include "image.h"
#include "math_kernel.h"

namespace headway {
namespace {

template <int K, int STRIDE, int PIXELS>
HEADWAY_INLINE void depthwise_pixels(const DepthwiseArgs* a, const F* w, F shift, const float* x, float* y) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = shift;
#pragma GCC unroll 7
  for (int ky = 0; ky < K; ++ky) {
    const float* line = x + ky * a->width * 16;
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      const F tap = w[ky * K + kx];
#pragma GCC unroll 4
      for (int i = 0; i < PIXELS; ++i) acc[i] = fma(load(line + (i * STRIDE + kx) * 16), tap, acc[i]);
    }
  }
  for (int i = 0; i < PIXELS; ++i) store(y + i * a->ldy, clamp(acc[i], a->low, a->high));
}

template <int K, int STRIDE> static void depthwise_rows(const DepthwiseArgs* a) {
  F w[K * K];
  for (int i = 0; i < K * K; ++i) w[i] = load(a->w + i * a->ldw);
  const F shift = load(a->shift);
  for (int64_t row = 0; row < a->rows; ++row) {
    const float* x = a->x + row * STRIDE * a->width * 16;
    float* y = a->y + row * a->out * a->ldy;
    int64_t at = 0;
    for (; at + 4 <= a->out; at += 4)
      depthwise_pixels<K, STRIDE, 4>(a, w, shift, x + at * STRIDE * 16, y + at * a->ldy);
    if (at < a->out && a->out >= 4) {  // the last four again, rather than one by one
      at = a->out - 4;
      depthwise_pixels<K, STRIDE, 4>(a, w, shift, x + at * STRIDE * 16, y + at * a->ldy);
      continue;
    }
    for (; at < a->out; ++at) depthwise_pixels<K, STRIDE, 1>(a, w, shift, x + at * STRIDE * 16, y + at * a->ldy);
  }
}

template <int K> static void depthwise_of(const DepthwiseArgs* a) {
  if (a->stride == 1) depthwise_rows<K, 1>(a);
  else depthwise_rows<K, 2>(a);
}

static void depthwise(const DepthwiseArgs* a) {
  if (a->kernel == 2) depthwise_of<2>(a);
  else if (a->kernel == 3) depthwise_of<3>(a);
  else if (a->kernel == 5) depthwise_of<5>(a);
  else depthwise_of<7>(a);
}

template <int PIXELS> HEADWAY_INLINE void window_pixels(const WindowArgs* a, const float* x, float* y) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = load(a->shift);
  const float* w = a->w;
  const int64_t run = a->kernel * a->channels, step = a->stride * a->channels;
  for (int64_t ky = 0; ky < a->kernel; ++ky, x += a->width * a->channels)
    for (int64_t k = 0; k < run; ++k, w += a->ldw) {
      const F tap = load(w);
#pragma GCC unroll 16
      for (int i = 0; i < PIXELS; ++i) acc[i] = fma(set1(x[i * step + k]), tap, acc[i]);
    }
  for (int i = 0; i < PIXELS; ++i) store(y + i * a->ldy, clamp(acc[i], a->low, a->high));
}

static void window(const WindowArgs* a) {
  const int64_t step = a->stride * a->channels;
  for (int64_t row = 0; row < a->rows; ++row) {
    const float* x = a->x + row * a->width * step;
    float* y = a->y + row * a->row;
    int64_t at = 0;
    for (; at + kTileColumns <= a->out; at += kTileColumns)
      window_pixels<kTileColumns>(a, x + at * step, y + at * a->ldy);
    if (at < a->out && a->out >= kTileColumns && a->out - at > 1) {  // the last few again, rather than one by one
      at = a->out - kTileColumns;
      window_pixels<kTileColumns>(a, x + at * step, y + at * a->ldy);
      continue;
    }
    for (; at < a->out; ++at) window_pixels<1>(a, x + at * step, y + at * a->ldy);
  }
}

// x clamp(x / 6 + 1/2, 0, 1) and its factor, as torch has them.
HEADWAY_INLINE F hard_sigmoid(F x) { return clamp(x + set1(3.0f), 0.0f, 6.0f) * set1(1.0f / 6.0f); }
HEADWAY_INLINE F sigmoid(F x) { return set1(1.0f) / (set1(1.0f) + exponential(zero() - x)); }

template <class Function> HEADWAY_INLINE void each_row(float* x, int64_t ld, int64_t rows, int64_t n, Function f) {
  if (ld == n) {
    n *= rows;
    rows = 1;
  }
  for (int64_t r = 0; r < rows; ++r, x += ld) each(x, n, [f](F v, int64_t, int) { return f(v); });
}

static void activate(float* x, int64_t ld, int64_t rows, int64_t n, int act, float low, float high,
                     const float* slope) {
  if (act == kActPrelu)
    for (int64_t r = 0; r < rows; ++r, x += ld)
      each(x, n, [slope](F v, int64_t i, int m) { return fma(min(v, zero()), load_n(slope + i, m), max(v, zero())); });
  else if (act == kActClamp) each_row(x, ld, rows, n, [low, high](F v) { return clamp(v, low, high); });
  else if (act == kActGelu) each_row(x, ld, rows, n, [](F v) { return gelu_erf(v); });
  else if (act == kActGeluTanh) each_row(x, ld, rows, n, [](F v) { return gelu_tanh(v); });
  else if (act == kActSilu) each_row(x, ld, rows, n, [](F v) { return v * sigmoid(v); });
  else if (act == kActHardSwish) each_row(x, ld, rows, n, [](F v) { return v * hard_sigmoid(v); });
  else if (act == kActHardSigmoid) each_row(x, ld, rows, n, [](F v) { return hard_sigmoid(v); });
  else each_row(x, ld, rows, n, [](F v) { return sigmoid(v); });
}

static void multiply(float* x, const float* a, int64_t n) {
  each(x, n, [a](F v, int64_t i, int m) { return v * load_n(a + i, m); });
}

static void scale_shift(const float* x, const float* scale, const float* shift, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, fma(load(x + i), load(scale + i), load(shift + i)));
  if (i < n) {
    const int rest = (int)(n - i);
    store_part(y + i, fma(load_part(x + i, rest), load_part(scale + i, rest), load_part(shift + i, rest)), rest);
  }
}

static void squares(float* sums, const float* x, const float* mean, int64_t n) {
  each(sums, n, [x, mean](F v, int64_t i, int m) {
    const F apart = load_n(x + i, m) - load_n(mean + i, m);
    return fma(apart, apart, v);
  });
}

static void softmax(float* x, int64_t n) {
  F best = set1(-kInfinity);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) best = max(load(x + i), best);
  float top = highest(best);
  for (; i < n; ++i)
    if (x[i] > top) top = x[i];
  F total = zero();
  for (i = 0; i + 16 <= n; i += 16) {
    const F e = exponential(load(x + i) - set1(top));
    total = total + e;
    store(x + i, e);
  }
  float all = sum(total);
  if (i < n) {
    const int rest = (int)(n - i);
    store_part(x + i, exponential(load_part(x + i, rest) - set1(top)), rest);
    for (; i < n; ++i) all += x[i];
  }
  const float inverse = 1.0f / all;
  each(x, n, [inverse](F v, int64_t, int) { return v * set1(inverse); });
}

}  // namespace
}  // namespace headway

#define HEADWAY_IMAGE(name)                                                                                       \
  namespace headway {                                                                                             \
  extern const ImageKernels name;                                                                                 \
  const ImageKernels name = {depthwise, window, activate, multiply, scale_shift, squares, softmax};               \
  }
