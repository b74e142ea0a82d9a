// Depthwise convolution of channels-last images, and what follows a convolution. Included after ops_kernel.h.
//
// 16 channels at a time: the taps stay in registers (AVX-512: 9 or 25 of 32), four pixels are summed together, so that
// each tap costs one load and one FMA. Every output is a chain over all taps in order, those outside the image being
// zeros: the same bits at every level.
#pragma once
#include "ops_kernel.h"

namespace headway {
namespace {

constexpr int64_t kBlockPixels = 8;  // of a row, taken through all channels: its input stays in the first-level cache
constexpr int64_t kBlockTaps = 2 * (kBlockPixels - 1) + 5;

HEADWAY_INLINE F clamp(F v, float low, float high) { return min(set1(high), max(set1(low), v)); }

static void affine(float* y, const float* scale, const float* shift, const float* residual, int64_t n, float low,
                   float high) {
  if (residual)
    each(y, n, [=](F v, int64_t i, int m) {
      return clamp(fma(v, load_n(scale + i, m), load_n(shift + i, m)) + load_n(residual + i, m), low, high);
    });
  else
    each(y, n, [=](F v, int64_t i, int m) {
      return clamp(fma(v, load_n(scale + i, m), load_n(shift + i, m)), low, high);
    });
}

// PIXELS outputs from `x`, all of whose taps lie inside the row.
template <int K, int PIXELS>
HEADWAY_INLINE void depthwise_inside(const DepthwiseArgs* a, const F* w, int64_t c, int64_t x) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = load(a->shift + c);
#pragma GCC unroll 5
  for (int ky = 0; ky < K; ++ky) {
    const float* from = a->rows[ky] + (x * a->stride - a->before) * a->ldx + c;
#pragma GCC unroll 5
    for (int kx = 0; kx < K; ++kx)
      for (int i = 0; i < PIXELS; ++i)
        acc[i] = fma(load(from + (i * a->stride + kx) * a->ldx), w[ky * K + kx], acc[i]);
  }
  for (int i = 0; i < PIXELS; ++i) {
    const F v = clamp(acc[i], a->low, a->high);
    store(a->y + (x + i) * a->ldy + c, v);
  }
}

// The same for any place: `taps` are the first channels of the input pixels of each row, zeros outside.
template <int K, int PIXELS>
HEADWAY_INLINE void depthwise_edge(const DepthwiseArgs* a, const F* w, const float* const (*taps)[kBlockTaps], int64_t c,
                                   int64_t x) {
  F acc[PIXELS];
  for (int i = 0; i < PIXELS; ++i) acc[i] = load(a->shift + c);
#pragma GCC unroll 5
  for (int ky = 0; ky < K; ++ky)
#pragma GCC unroll 5
    for (int kx = 0; kx < K; ++kx)
      for (int i = 0; i < PIXELS; ++i) acc[i] = fma(load(taps[ky][i * a->stride + kx] + c), w[ky * K + kx], acc[i]);
  for (int i = 0; i < PIXELS; ++i) store(a->y + (x + i) * a->ldy + c, clamp(acc[i], a->low, a->high));
}

template <int K> static void depthwise_row(const DepthwiseArgs* a) {
  const int64_t first = (a->before + a->stride - 1) / a->stride;
  const int64_t spare = a->width - K + a->before;
  const int64_t last = spare < 0 ? 0 : spare / a->stride + 1;  // outputs [first, last) need no padding
  for (int64_t block = 0; block < a->out; block += kBlockPixels) {
    const int64_t end = block + kBlockPixels < a->out ? block + kBlockPixels : a->out;
    // Where a group of four would go beyond the row it starts earlier, and some pixels are computed twice.
    const int64_t begin = end - block < 4 && a->out >= 4 ? a->out - 4 : block;
    const float* taps[K][kBlockTaps];
    for (int ky = 0; ky < K; ++ky)
      for (int64_t i = 0; i < (kBlockPixels - 1) * a->stride + K; ++i) {
        const int64_t at = begin * a->stride - a->before + i;
        taps[ky][i] = at >= 0 && at < a->width ? a->rows[ky] + at * a->ldx : a->zeros;
      }
    for (int64_t c = 0; c < a->channels; c += 16) {
      F w[K * K];
      for (int i = 0; i < K * K; ++i) w[i] = load(a->w + i * a->ldw + c);
      const auto part = [&](int64_t x) { return (const float* const (*)[kBlockTaps])(taps[0] + (x - begin) * a->stride); };
      if (a->out < 4) {
        for (int64_t x = 0; x < a->out; ++x) depthwise_edge<K, 1>(a, w, part(x), c, x);
        continue;
      }
      for (int64_t x = begin; x < end; x += 4) {
        if (x + 4 > end) x = end - 4;
        if (x >= first && x + 4 <= last) depthwise_inside<K, 4>(a, w, c, x);
        else depthwise_edge<K, 4>(a, w, part(x), c, x);
      }
    }
  }
}

static void depthwise(const DepthwiseArgs* a) {
  if (a->kernel == 3) depthwise_row<3>(a);
  else depthwise_row<5>(a);
}

}  // namespace
}  // namespace headway
