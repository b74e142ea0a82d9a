// W8A16 products (w8a16.h). Included after a level's simd.h and what its w8a16.cpp adds to it.
//
// Per 16 rows x 2 columns: 64 B of widened codes and, for each activation row, a broadcast of 4 B; on AVX2 two vpmaddwd
// and two vpaddd for 64 operations: 195 GOP/s if a Zen 3 core of 97 GFLOP/s issued four a cycle. Reached there: 120 to
// 135 from 80 columns on, 1.5 times the float32 product beside it; 77 at 16, 1.35 times, where both store as long as
// they sum. Lost: the pipes that sums and products share, and the ends of groups of 64. A tile's codes are widened once
// for all rows. For each group in order, lanes being rows:
//   acc = fma(scale, float(dot), acc), the first without a sum;   then y = acc * sx
#pragma once
#include "store_kernel.h"
#include "w8a16.h"

namespace headway {
namespace {

static void w8a16_quantise(const float* x, int64_t ldx, int64_t rows, int64_t cols, void* out) {
  int16_t* to = (int16_t*)out;
  float* scales = (float*)((char*)out + w8a16_codes_bytes(rows, cols));
  const I magnitude = set1i(0x7fffffff);
  for (int64_t r = 0; r < rows; ++r, x += ldx, to += cols) {
    I most = set1i(0);
    for (int64_t c = 0; c < cols; c += 16) most = max(most, bits(load(x + c)) & magnitude);
    const int32_t top = highest(most);
    float largest;
    __builtin_memcpy(&largest, &top, 4);
    if (top >= 0x7f800000 || top < 0x0d800000) {  // 2^-100: nothing
      scales[r] = top >= 0x7f800000 ? __builtin_nanf("") : 0.0f;
      for (int64_t c = 0; c < cols; c += 16) store_i16(to + c, set1i(0));
      continue;
    }
    scales[r] = largest / 32767.0f;
    const F inverse = set1(32767.0f / largest);
    for (int64_t c = 0; c < cols; c += 16) store_i16(to + c, to_int(load(x + c) * inverse));
  }
}

// COLS activation rows against a widened tile; sums of `run` columns are scaled together.
template <int COLS>
HEADWAY_INLINE void w8a16_block(const int16_t* w, const float* scales, int64_t cols, int64_t run, const int16_t* x,
                                int64_t ldx, const float* sx, float* y, int64_t ldy, int64_t row, int64_t last_rows,
                                int64_t at, const Finish* finish) {
  F acc[1][COLS];
  const auto sums = [&]<bool FIRST>(int64_t n) __attribute__((always_inline)) {
    I dots[COLS];
    sum_pairs<COLS>(dots, w, x, ldx, n);
    const F scale = load(scales);
    for (int c = 0; c < COLS; ++c)
      if constexpr (FIRST) acc[0][c] = scale * to_float(dots[c]);
      else acc[0][c] = fma(scale, to_float(dots[c]), acc[0][c]);
    w += n * 16;
    x += n;
    scales += 16;
  };
  sums.template operator()<true>(cols < run ? cols : run);
  for (int64_t left = cols - run; left > 0; left -= run) {
    if constexpr (COLS > 1)
      for (int c = 0; c < COLS; ++c) park(acc[0][c]);
    sums.template operator()<false>(left < run ? left : run);
  }
  for (int c = 0; c < COLS; ++c) acc[0][c] = acc[0][c] * set1(sx[c]);
  dense_store<1, COLS>(acc, y, ldy, row, last_rows, at, finish);
}

static void w8a16_multiply(const IntTiles* w, int64_t cols, const void* acts, int64_t rows, float* y, int64_t ldy,
                           int64_t begin, int64_t end, void* scratch, const Finish* finish) {
  // Of a group too long to be summed at once, the largest power of two that divides it.
  const int64_t divides = w->group & -w->group;
  const int64_t run = w->group <= kW8a16Columns ? w->group : divides < kW8a16Columns ? divides : kW8a16Columns;
  const int64_t ldx = w->blocks * 32;
  const int64_t used = (cols + 3) / 4 * 4, header = w->wide_header ? 64 : 32;
  const int16_t* x = (const int16_t*)acts;
  const float* sx = (const float*)((const char*)acts + w8a16_codes_bytes(rows, ldx));
  int16_t* lines = (int16_t*)scratch;
  float* scales = (float*)(lines + ldx * 16);
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* p = w->data + (size_t)tile * w->tile_bytes;
    F scale = zero();
    for (int64_t b = 0, sums = 0; b * 32 < used; ++b, p += 512) {
      if (b * 32 % w->group == 0) {
        scale = w->wide_header ? load((const float*)p) : load_f16((const uint16_t*)p);
        p += header;
      }
      if (b * 32 % w->group % run == 0) store(scales + 16 * sums++, scale);
      for (int j = 0; j < 8; ++j) widen_pairs(p + j * 64, w->zero, lines + (b * 8 + j) * 64);
    }
    const int64_t at = tile * 16, last = w->out - at < 16 ? w->out - at : 16;
    int64_t r = 0;
    for (; r + kPairRows <= rows; r += kPairRows)
      w8a16_block<kPairRows>(lines, scales, used, run, x + r * ldx, ldx, sx + r, y + at, ldy, r, last, at, finish);
    if constexpr (kPairRows > 4)
      for (; r + 4 <= rows; r += 4)
        w8a16_block<4>(lines, scales, used, run, x + r * ldx, ldx, sx + r, y + at, ldy, r, last, at, finish);
    for (; r < rows; ++r)
      w8a16_block<1>(lines, scales, used, run, x + r * ldx, ldx, sx + r, y + at, ldy, r, last, at, finish);
  }
}

}  // namespace
}  // namespace headway

#define HEADWAY_W8A16(name)                                        \
  namespace headway {                                              \
  extern const W8a16Kernels name;                                  \
  const W8a16Kernels name = {w8a16_quantise, w8a16_multiply};      \
  }
