// Products of recovered codes: the planes of a tile to bytes, then int8 dot products (bipolar.h). Included after
// bipolar_kernel.h.
//
// A tile's codes lie in `recovered`: [block][8 quads] lines of 64 bytes, byte 4r + c = code of row r and column c of the
// quad; then int32 [segment][16], the sum of every segment's codes. 16 bytes per column: they stay in the first cache.
#pragma once
#include "bipolar_kernel.h"

namespace headway::bipolar {
namespace {

// Fields of 2 bits of the planes a (low) and b (high, or none): fields[0] those of even q, fields[1] of odd ones.
template <bool BOTH> HEADWAY_INLINE void pairs(const Codes& a, const Codes& b, Codes* fields) {
  if constexpr (BOTH) {
    fields[0] = choose(0x55, a, shift_left(b, 1));
    fields[1] = choose(0x55, shift_right(a, 1), b);
  } else {
    fields[0] = masked(a, 0x55);
    fields[1] = masked(shift_right(a, 1), 0x55);
  }
}

// Fields of 4 bits of N planes (1..4): nibbles[parity + 2 h] holds q = parity + 2 h below, q + 4 above.
template <int N> HEADWAY_INLINE void nibbles_of(const uint8_t* p, Codes* nibbles) {
  Codes below[2], above[2];
  const Codes first = load_codes(p);
  pairs<(N > 1)>(first, N > 1 ? load_codes(p + 64) : first, below);
  if constexpr (N > 2) {
    const Codes third = load_codes(p + 128);
    pairs<(N > 3)>(third, N > 3 ? load_codes(p + 192) : third, above);
  }
  for (int parity = 0; parity < 2; ++parity) {
    if constexpr (N > 2) {
      nibbles[parity] = choose(0x33, below[parity], shift_left(above[parity], 2));
      nibbles[parity + 2] = choose(0x33, shift_right(below[parity], 2), above[parity]);
    } else {
      nibbles[parity] = masked(below[parity], 0x33);
      nibbles[parity + 2] = masked(shift_right(below[parity], 2), 0x33);
    }
  }
}

// N planes of a block to one code per byte, line q = columns 4q .. 4q + 3.
template <int N> HEADWAY_INLINE void recover_block(const uint8_t* p, Codes* out) {
  Codes below[4];
  nibbles_of<(N < 4 ? N : 4)>(p, below);
  if constexpr (N <= 4) {
    for (int k = 0; k < 4; ++k) {
      out[k] = low(below[k]);
      out[4 + k] = high(below[k]);
    }
  } else {
    Codes above[4];
    nibbles_of<N - 4>(p + 256, above);
    for (int k = 0; k < 4; ++k) {
      out[k] = choose(0x0f, below[k], shift_left(above[k], 4));
      out[4 + k] = choose(0x0f, shift_right(below[k], 4), above[k]);
    }
  }
}

// `sums`: of the codes too.
template <int N> static void recover_tile(const View& w, int64_t tile, bool sums, uint8_t* recovered) {
  using D = Dot<(N <= 4 ? 4 : 8)>;
  const int8_t ones[4] = {1, 1, 1, 1};
  const uint8_t* p = w.data + tile * w.tile_bytes;
  int32_t* totals = (int32_t*)(recovered + w.blocks * 512);
  const int64_t header = (w.half ? 32 : 64) * (1 + w.offset);
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t end = smaller(block + w.group_blocks, w.blocks);
    p += header;
    while (block < end) {
      I total = set1i(0);
      for (int64_t n = smaller(w.segment_blocks, end - block); n > 0; --n, ++block, p += 64 * N) {
        for (int i = 0; i < N; ++i) __builtin_prefetch(p + 64 * i + kAhead, 0, 3);
        Codes line[8];
        recover_block<N>(p, line);
        for (int q = 0; q < 8; ++q) store_codes(recovered + block * 512 + 64 * q, line[q]);
        if (!sums) continue;
        D dot;
        D::init(dot);
        for (int q = 0; q < 8; ++q) D::add(dot, line[q], ones);
        total = total + D::total(dot);
      }
      if (sums) store_i(totals, total);
      totals += 16;
    }
  }
}

// The product of levels from that of codes u and bytes: V_w = 2u - top; V_x is the byte, or 2 byte + 1 for 8 bits.
// `codes`: the sum of u, for 8 bits.
HEADWAY_INLINE I of_levels(const View& w, const Activations& x, const Segment& at, int64_t row, I products, I codes) {
  const int32_t top = (1 << w.bits) - 1;
  const I value = shift_left(products, 1) - set1i(top * ((const int32_t*)x.meta)[(at.index * 3 + 1) * x.rows + row]);
  if (x.bits < 8) return value;
  return shift_left(value, 1) + (shift_left(codes, 1) - set1i(top * (int32_t)at.columns));
}

// BITS: of codes of up to 4 bits, or of up to 8.
template <int BITS, int COLS> struct Recovered {
  HEADWAY_INLINE void products(const View& w, const Activations& x, const Segment& at, int64_t row,
                               const uint8_t* recovered, I* value) {
    using D = Dot<BITS>;
    const int64_t rows = x.rows;
    const int8_t* bytes = (const int8_t*)x.codes + (at.block * 8 * rows + row) * 4;
    const uint8_t* lines = recovered + at.block * 512;
    for (int c = 0; c < COLS; ++c) value[c] = set1i(0);
    for (int64_t b = 0; b < at.blocks; ++b) {
      D dots[COLS];
      for (int c = 0; c < COLS; ++c) D::init(dots[c]);
#pragma GCC unroll 1
      for (int q = 0; q < 8; ++q, lines += 64, bytes += 4 * rows) {
        const Codes line = load_codes(lines);
        for (int c = 0; c < COLS; ++c) D::add(dots[c], line, bytes + 4 * c);
      }
      for (int c = 0; c < COLS; ++c) value[c] = value[c] + D::total(dots[c]);
    }
    I codes = set1i(0);
    if (x.bits == 8) codes = load_i((const int32_t*)(recovered + w.blocks * 512) + at.index * 16);
    for (int c = 0; c < COLS; ++c) value[c] = of_levels(w, x, at, row + c, value[c], codes);
  }
};

// The same for one row of activations: codes go from planes to products in registers.
template <int N> struct Straight {
  HEADWAY_INLINE void products(const View& w, const Activations& x, const Segment& at, int64_t row, const uint8_t*,
                               I* value) {
    using D = Dot<(N <= 4 ? 4 : 8)>;
    const int8_t ones[4] = {1, 1, 1, 1};
    const int8_t* bytes = (const int8_t*)x.codes + at.block * 32;
    I total = set1i(0), codes = set1i(0);
    for (int64_t b = 0; b < at.blocks; ++b, bytes += 32) {
      const uint8_t* p = at.lines + b * 64 * N;
      for (int i = 0; i < N; ++i) __builtin_prefetch(p + 64 * i + kAhead, 0, 3);
      Codes line[8];
      recover_block<N>(p, line);
      D dot;
      D::init(dot);
      for (int q = 0; q < 8; ++q) D::add(dot, line[q], bytes + 4 * q);
      total = total + D::total(dot);
      if (x.bits == 8) {
        D sums;
        D::init(sums);
        for (int q = 0; q < 8; ++q) D::add(sums, line[q], ones);
        codes = codes + D::total(sums);
      }
    }
    *value = of_levels(w, x, at, row, total, codes);
  }
};

template <int COLS> HEADWAY_INLINE Walk recovering(int bits) {
  return bits <= 4 ? walk<COLS, Recovered<4, COLS>> : walk<COLS, Recovered<8, COLS>>;
}

static void recover(const View& w, const Activations& x, float* y, int64_t* exact, int64_t ldy, int64_t begin,
                    int64_t end, void* scratch) {
  using Recover = void (*)(const View&, int64_t, bool, uint8_t*);
  static const Recover by_bits[] = {recover_tile<1>, recover_tile<2>, recover_tile<3>, recover_tile<4>,
                                    recover_tile<5>, recover_tile<6>, recover_tile<7>, recover_tile<8>};
  static const Walk straight[] = {walk<1, Straight<1>>, walk<1, Straight<2>>, walk<1, Straight<3>>, walk<1, Straight<4>>,
                                  walk<1, Straight<5>>, walk<1, Straight<6>>, walk<1, Straight<7>>, walk<1, Straight<8>>};
  if (x.rows == 1) {
    for (int64_t tile = begin; tile < end; ++tile) straight[w.bits - 1](w, x, tile, 0, nullptr, y, exact, ldy);
    return;
  }
  auto* recovered = (uint8_t*)scratch;
  const Walk several = recovering<kIntColumns>(w.bits), two = recovering<2>(w.bits), one = recovering<1>(w.bits);
  for (int64_t tile = begin; tile < end; ++tile) {
    by_bits[w.bits - 1](w, tile, x.bits == 8, recovered);
    int64_t r = 0;
    for (; r + kIntColumns <= x.rows; r += kIntColumns) several(w, x, tile, r, recovered, y, exact, ldy);
    for (; r + 2 <= x.rows; r += 2) two(w, x, tile, r, recovered, y, exact, ldy);
    for (; r < x.rows; ++r) one(w, x, tile, r, recovered, y, exact, ldy);
  }
}

}  // namespace
}  // namespace headway::bipolar
