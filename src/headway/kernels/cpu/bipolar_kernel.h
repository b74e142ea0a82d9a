// The walk over a tile that both kinds of bipolar product share, and the counting ones (bipolar.h). Included after a
// level's simd.h and its `kChunk`, the most blocks that its `count_chunk` takes, and before that.
#pragma once
#include "bipolar.h"

namespace headway::bipolar {
namespace {

constexpr int kCols = kIntColumns;  // activation rows counted together: a line of the weight is loaded once for them

// acc[c] += sum_ij 2^(i+j) popcount(w_i ^ x_j) over at most kChunk blocks. w: [block][bits] lines; x: [block] `stride`
// words apart, [COLS][M] words.
template <int M, int COLS>
HEADWAY_INLINE void count_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride, I* acc);

HEADWAY_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Columns that share all scales, of one tile.
struct Segment {
  const uint8_t* lines;  // of the weight
  int64_t block, blocks, index, columns;
};

// Products of a tile with COLS rows, scaled and summed as floats into y, or as they are into `exact`. `P::products` gives
// those of a segment, 16 rows of the weight in lanes.
template <int COLS, class P>
static void walk(const View& w, const Activations& x, int64_t tile, int64_t row, const uint8_t* recovered, float* y,
                 int64_t* exact, int64_t ldy) {
  int64_t whole[COLS * 16];
  F acc[COLS];
  for (int c = 0; c < COLS; ++c) acc[c] = zero();
  if (exact) __builtin_memset(whole, 0, sizeof whole);
  const int64_t half_header = w.half ? 32 : 64, header = half_header * (1 + w.offset), rows = x.rows;
  const float* meta = (const float*)x.meta + row;
  Segment at = {w.data + tile * w.tile_bytes, 0, 0, 0, 0};
  while (at.block < w.blocks) {
    const int64_t end = smaller(at.block + w.group_blocks, w.blocks);
    const uint8_t* floats = at.lines;
    const F scale = w.half ? load_f16((const uint16_t*)floats) : load((const float*)floats);
    F offset = zero();
    if (w.offset)
      offset = w.half ? load_f16((const uint16_t*)(floats + half_header)) : load((const float*)(floats + half_header));
    at.lines += header;
    for (; at.block < end; ++at.index, meta += 3 * rows) {
      at.blocks = smaller(w.segment_blocks, end - at.block);
      at.columns = smaller(at.blocks * kColumns, w.in - at.block * kColumns);
      I value[COLS];
      P::products(w, x, at, row, recovered, value);
      for (int c = 0; c < COLS; ++c) {
        acc[c] = fma(scale * set1(meta[c]), to_float(value[c]), acc[c]);
        if (w.offset) acc[c] = fma(offset, set1(meta[2 * rows + c]), acc[c]);
      }
      if (exact)
        for (int c = 0; c < COLS; ++c) {
          int32_t own[16];
          store_i(own, value[c]);
          for (int r = 0; r < 16; ++r) whole[16 * c + r] += own[r];
        }
      at.lines += at.blocks * 64 * w.bits;
      at.block += at.blocks;
    }
  }
  const int64_t first = tile * kRows, n = smaller(kRows, w.out - first);
  for (int c = 0; c < COLS; ++c) {
    if (exact) {
      for (int64_t r = 0; r < n; ++r) exact[(row + c) * ldy + first + r] = whole[16 * c + r];
      continue;
    }
    float* to = y + (row + c) * ldy + first;
    if (n == kRows) store(to, acc[c]);
    else store_part(to, acc[c], (int)n);
  }
}

template <int M, int COLS> struct Counted {
  HEADWAY_INLINE void products(const View& w, const Activations& x, const Segment& at, int64_t row, const uint8_t*,
                               I* value) {
    const int64_t stride = x.rows * M;
    const uint32_t* words = (const uint32_t*)x.codes + row * M + at.block * stride;
    I acc[COLS];
    for (int c = 0; c < COLS; ++c) acc[c] = set1i(0);
    if (at.blocks == 2)  // the default's segments of 64 columns, without loops
      count_chunk<M, COLS>(at.lines, w.bits, 2, words, stride, acc);
    else
      for (int64_t b = 0; b < at.blocks; b += kChunk)
        count_chunk<M, COLS>(at.lines + b * 64 * w.bits, w.bits, smaller(kChunk, at.blocks - b), words + b * stride,
                             stride, acc);
    const I total = set1i((int32_t)at.columns * ((1 << w.bits) - 1) * ((1 << M) - 1));
    for (int c = 0; c < COLS; ++c) value[c] = total - shift_left(acc[c], 1);
  }
};

using Walk = void (*)(const View& w, const Activations& x, int64_t tile, int64_t row, const uint8_t* recovered,
                      float* y, int64_t* exact, int64_t ldy);

template <int COLS> HEADWAY_INLINE Walk counting(int bits) {
  static const Walk walks[] = {walk<COLS, Counted<1, COLS>>, walk<COLS, Counted<2, COLS>>, walk<COLS, Counted<3, COLS>>,
                               walk<COLS, Counted<4, COLS>>, walk<COLS, Counted<5, COLS>>, walk<COLS, Counted<6, COLS>>,
                               walk<COLS, Counted<7, COLS>>, walk<COLS, Counted<8, COLS>>};
  return walks[bits - 1];
}

static void count(const View& w, const Activations& x, float* y, int64_t* exact, int64_t ldy, int64_t begin,
                  int64_t end, void*) {
  const Walk several = counting<kCols>(x.bits), one = counting<1>(x.bits);
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t r = 0;
    for (; r + kCols <= x.rows; r += kCols) several(w, x, tile, r, nullptr, y, exact, ldy);
    for (; r < x.rows; ++r) one(w, x, tile, r, nullptr, y, exact, ldy);
  }
}

}  // namespace
}  // namespace headway::bipolar
