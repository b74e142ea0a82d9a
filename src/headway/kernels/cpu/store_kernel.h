// Where the sums of a block of rows go, with what follows them (Finish in kernels.h). Included after a level's simd.h.
#pragma once
#include "kernels.h"

namespace headway {
namespace {

HEADWAY_INLINE void store_rows(float* y, F a, int64_t n) {
  if (n >= 16) store(y, a);
  else store_part(y, a, (int)n);
}

// Sums of COLS rows, from `row` on, and of TILES tiles: `y` is row 0 at the first of them, whose channel is `at`.
template <int TILES, int COLS>
HEADWAY_INLINE void dense_store(const F (*acc)[COLS], float* y, int64_t ldy, int64_t row, int64_t last_rows, int64_t at,
                                const Finish* f) {
  if (!f) {
    for (int c = 0; c < COLS; ++c)
      for (int t = 0; t < TILES; ++t)
        store_rows(y + (row + c) * ldy + t * 16, acc[t][c], t + 1 < TILES ? 16 : last_rows);
    return;
  }
  // Copies: what is stored could overwrite the originals, for all that the compiler knows.
  const int64_t width = f->width, gap = f->gap, ldr = f->ldr, line = gap ? row / width : 0;
  int64_t left = gap ? (line + 1) * width - row : INT64_MAX;
  const F low = set1(f->low), high = set1(f->high);
  const float *scale = f->scale + at, *shift = f->shift + at;
  const float* residual = f->residual ? f->residual + row * ldr + at : nullptr;
  F out[TILES][COLS];
#pragma GCC unroll 2
  for (int t = 0; t < TILES; ++t) {
    const F s = load(scale + t * 16), b = load(shift + t * 16);
#pragma GCC unroll 32
    for (int c = 0; c < COLS; ++c) out[t][c] = fma(acc[t][c], s, b);
  }
  if (residual)
#pragma GCC unroll 2
    for (int t = 0; t < TILES; ++t)
#pragma GCC unroll 32
      for (int c = 0; c < COLS; ++c) out[t][c] = out[t][c] + load(residual + c * ldr + t * 16);
  float* to = y + row * ldy + line * gap;
#pragma GCC unroll 32
  for (int c = 0; c < COLS; ++c, to += ldy) {
#pragma GCC unroll 2
    for (int t = 0; t < TILES; ++t) store(to + t * 16, min(high, max(low, out[t][c])));
    if (--left == 0) {
      to += gap;
      left = width;
    }
  }
}

}  // namespace
}  // namespace headway
