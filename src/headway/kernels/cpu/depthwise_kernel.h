// Convolutions that read their taps where they lie: depthwise ones, and the first, of planes of colours.
//
// Depthwise: one tile of 16 channels, its image in the cache with its padding, so that no pixel is a special case. Four
// pixels are summed together: a tap costs one load and one FMA each, and its weight one load for all four (AVX-512:
// none, the taps stay in registers). Every output is a chain over all taps in order: the same bits at every level.
//
// Bytes: 64 a pixel in, from the first or second level, and 64 out. AVX2: per tap of four pixels 10 loads,
// two a cycle, for 8 FMAs: at most 0.8 of the FMA peak. Reached over EfficientNet-Lite0, one Zen 3 core of 97 GFLOP/s:
// 43 GFLOP/s of 78; 65 where K = 5 and rows are long, 25 where they have 7 pixels, of which one is summed twice.
// The stem: 49 GFLOP/s with its padding.
#pragma once
#include "finish_kernel.h"

namespace headway {
namespace {

template <int K, int STRIDE, int PIXELS>
HEADWAY_INLINE void depthwise_pixels(const DepthwiseArgs* a, const F* w, F shift, const float* x, float* y) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = shift;
#pragma GCC unroll 5
  for (int ky = 0; ky < K; ++ky) {
    const float* line = x + ky * a->width * 16;
#pragma GCC unroll 5
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

static void depthwise(const DepthwiseArgs* a) {
  if (a->kernel == 3 && a->stride == 1) depthwise_rows<3, 1>(a);
  else if (a->kernel == 3) depthwise_rows<3, 2>(a);
  else if (a->stride == 1) depthwise_rows<5, 1>(a);
  else depthwise_rows<5, 2>(a);
}

// PIXELS outputs of one tile of channels: each tap's weight is loaded once, the colours are broadcast.
template <int PIXELS> HEADWAY_INLINE void stem_pixels(const StemArgs* a, const float* x, float* y) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = load(a->shift);
  const float* w = a->w;
  for (int64_t c = 0; c < a->channels; ++c)
    for (int64_t ky = 0; ky < a->kernel; ++ky) {
      const float* line = x + c * a->plane + ky * a->width;
      for (int64_t kx = 0; kx < a->kernel; ++kx, w += a->ldw) {
        const F tap = load(w);
#pragma GCC unroll 6
        for (int i = 0; i < PIXELS; ++i) acc[i] = fma(set1(line[i * a->stride + kx]), tap, acc[i]);
      }
    }
  for (int i = 0; i < PIXELS; ++i) store(y + i * 16, clamp(acc[i], a->low, a->high));
}

static void stem(const StemArgs* a) {
  for (int64_t row = 0; row < a->rows; ++row) {
    const float* x = a->x + row * a->stride * a->width;
    float* y = a->y + row * a->ldy;
    int64_t at = 0;
    for (; at + 6 <= a->out; at += 6) stem_pixels<6>(a, x + at * a->stride, y + at * 16);
    for (; at < a->out; ++at) stem_pixels<1>(a, x + at * a->stride, y + at * 16);
  }
}

}  // namespace
}  // namespace headway
