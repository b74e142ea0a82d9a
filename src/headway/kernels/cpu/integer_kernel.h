// Integer tiles against int8 activations (layouts in kernels.h). Included after a level's simd.h.
//
// Per 16 rows x 32 columns, 4 bits with f16 scale and minimum: 320 B, 8 dot products of 64 codes per activation row
// (1,024 operations), then convert, multiply and two fused multiply-adds. Lanes are rows: nothing is ever summed
// across lanes. For each group in order:
//   acc = fma(scale * sx, float(dot - zero * sum), acc);   acc = fma(minimum, sx * sum, acc)
// which is the same for one activation row, for many, and at every level.
//
// AVX2, one core of a Zen 3, 512 rows: 157 to 184 GOP/s, where vpmaddubsw and vpaddw alone reach 280; the rest is the
// end of each group. Rows that lay 2 KiB apart, and sums that the compiler kept on the stack, left 80 to 115.
#pragma once
#include "kernels.h"

namespace headway {
namespace {

constexpr int64_t kUnpackRows = 32;  // from here on 4-bit codes are unpacked once for all activation rows

// Bytes that packed codes are fetched ahead of their use: without it one core reads 0.74 of what it can, with it 0.87
// (Zen 5; 4 to 32 KiB are alike). It reaches into the next tiles, and at a matrix's end into what lies behind it.
constexpr int kAhead = 8192;

struct IntPanel {
  int8_t* codes;
  float* meta;
};

// The panel that begins with row `r`; those before it are full.
HEADWAY_INLINE IntPanel int_panel(const void* acts, int64_t r, int64_t rows, int64_t blocks, int64_t parts) {
  return {(int8_t*)acts + r * blocks * 32,
          (float*)((char*)acts + int8_codes_bytes(rows, blocks)) + r * blocks * (1 + 2 * parts)};
}

static void quantise_panel(const float* x, int64_t ldx, int64_t rows, int64_t parts, int64_t begin, int64_t end,
                           int8_t* codes, float* meta) {
  const I magnitude = set1i(0x7fffffff);
  for (int64_t b = begin; b < end; ++b) {
    float* at = meta + b * (1 + 2 * parts) * rows;
    int8_t* to = codes + b * 32 * rows;
    for (int64_t r = 0; r < rows; ++r) {
      const F v0 = load(x + r * ldx + b * 32), v1 = load(x + r * ldx + b * 32 + 16);
      const int32_t top = highest(max(bits(v0) & magnitude, bits(v1) & magnitude));
      float largest;
      __builtin_memcpy(&largest, &top, 4);
      float sx = largest / 127.0f, inverse = 127.0f / largest;
      if (top >= 0x7f800000) {
        sx = __builtin_nanf("");
        inverse = 0.0f;
      } else if (top < 0x0d800000) {  // 2^-100: nothing
        sx = inverse = 0.0f;
      }
      I q0 = to_int(v0 * set1(inverse)), q1 = to_int(v1 * set1(inverse));
      if (inverse == 0.0f) q0 = q1 = set1i(0);
      const int32_t s0 = sum(q0), s1 = sum(q1);
      at[r] = sx;
      if (parts == 1) {
        at[rows + r] = sx * (float)(s0 + s1);
        at[2 * rows + r] = (float)(s0 + s1);
      } else {
        at[rows + r] = sx * (float)s0;
        at[2 * rows + r] = sx * (float)s1;
        at[3 * rows + r] = (float)s0;
        at[4 * rows + r] = (float)s1;
      }
      int8_t line[32];
      store_i8(line, q0);
      store_i8(line + 16, q1);
      for (int j = 0; j < 8; ++j) __builtin_memcpy(to + (j * rows + r) * 4, line + 4 * j, 4);
    }
  }
}

static void quantise(const float* x, int64_t ldx, int64_t rows, int64_t blocks, int64_t parts, int64_t begin,
                     int64_t end, void* out) {
  for (int64_t r = 0; r < rows; r += kPanelRows) {
    const IntPanel panel = int_panel(out, r, rows, blocks, parts);
    quantise_panel(x + r * ldx, ldx, rows - r < kPanelRows ? rows - r : kPanelRows, parts, begin, end, panel.codes,
                   panel.meta);
  }
}

template <bool WIDE, bool MIN> constexpr int header_bytes() { return (WIDE ? 64 : 32) * (MIN ? 2 : 1); }

template <bool WIDE> HEADWAY_INLINE F header_load(const uint8_t* p) {
  if constexpr (WIDE) return load((const float*)p);
  else return load_f16((const uint16_t*)p);
}

// The products of one block of 32 columns, or of its half `part` where groups have 16.
template <int BITS, int PARTS, bool UNPACKED, int COLS>
HEADWAY_INLINE void int_dots(const uint8_t* codes, const int8_t* x, int64_t rows, int part, Dot<BITS>* dots) {
  for (int c = 0; c < COLS; ++c) Dot<BITS>::init(dots[c]);
  if constexpr (BITS == 4 && !UNPACKED) {
    for (int j = 0; j < 4; ++j) {
      const Codes both = load_codes(codes + j * 64);
      if (PARTS == 1 || part == 0)
        for (int c = 0; c < COLS; ++c) Dot<BITS>::add(dots[c], low(both), x + (j * rows + c) * 4);
      if (PARTS == 1 || part == 1)
        for (int c = 0; c < COLS; ++c) Dot<BITS>::add(dots[c], high(both), x + ((4 + j) * rows + c) * 4);
    }
  } else {
    constexpr int quads = PARTS == 2 ? 4 : 8;
    const auto quad = [&]<int H>(int j) __attribute__((always_inline)) {
      const Codes line = load_codes(codes + j * 64);
      for (int c = 0; c < COLS; ++c) Dot<BITS>::template add_half<H>(dots[c], line, x + (j * rows + c) * 4);
    };
    const auto half = [&]<int H>() __attribute__((always_inline)) {
      if constexpr (UNPACKED) {
#pragma GCC unroll kUnpackedQuads
        for (int j = part * quads; j < (part + 1) * quads; ++j) quad.template operator()<H>(j);
      } else {
#pragma GCC unroll 8
        for (int j = part * quads; j < (part + 1) * quads; ++j) quad.template operator()<H>(j);
      }
    };
    half.template operator()<0>();
    if constexpr (Dot<BITS>::halves == 2) half.template operator()<1>();
  }
}

// COLS activation rows of a panel of `rows`, from its row `r`, against one tile of BITS-bit codes; UNPACKED: 4-bit codes
// already one per byte.
template <int BITS, int PARTS, bool WIDE, bool MIN, bool UNPACKED, int COLS>
HEADWAY_INLINE void int_block(const IntTiles* w, const uint8_t* p, const uint8_t* lines, IntPanel panel, int64_t rows,
                              int64_t r, float* y, int64_t ldy, int64_t tile_rows) {
  constexpr int header = header_bytes<WIDE, MIN>();
  const int64_t per_group = PARTS == 2 ? 1 : w->group / 32;
  const F minus_zero = set1(-(float)w->zero);
  const bool shifted = w->zero != 0;
  const int8_t* x = panel.codes + r * 4;
  const float* meta = panel.meta + r;
  F acc[COLS];
  for (int c = 0; c < COLS; ++c) acc[c] = zero();
  for (int64_t left = w->blocks; left > 0;) {
    F scale[PARTS], minimum[PARTS];
    for (int s = 0; s < PARTS; ++s, p += header) {
      scale[s] = header_load<WIDE>(p);
      if constexpr (MIN) minimum[s] = header_load<WIDE>(p + header / 2);
    }
    int64_t n = per_group < left ? per_group : left;
    left -= n;
    do {
      const uint8_t* codes = UNPACKED ? lines : p;
      if constexpr (!UNPACKED)
        for (int j = 0; j < (BITS == 4 ? 320 : 576); j += 64) __builtin_prefetch(p + kAhead + j, 0, 3);
      for (int s = 0; s < PARTS; ++s) {
        Dot<BITS> dots[COLS];
        if constexpr (COLS > 1)
          for (int c = 0; c < COLS; ++c) park(acc[c]);
        int_dots<BITS, PARTS, UNPACKED, COLS>(codes, x, rows, s, dots);
        const float* sums = meta + (1 + PARTS + s) * rows;
        for (int c = 0; c < COLS; ++c) {
          F value = to_float(Dot<BITS>::total(dots[c]));
          if (shifted) value = fma(minus_zero, set1(sums[c]), value);  // whole numbers below 2^24: exact
          acc[c] = fma(scale[s] * set1(meta[c]), value, acc[c]);
          if constexpr (MIN) acc[c] = fma(minimum[s], set1(meta[(1 + s) * rows + c]), acc[c]);
        }
      }
      p += BITS == 4 ? 256 : 512;
      lines += 512;
      x += 32 * rows;
      meta += (1 + 2 * PARTS) * rows;
    } while (--n);
  }
  for (int c = 0; c < COLS; ++c) store_rows(y + c * ldy, acc[c], tile_rows);
}

// 4-bit lines to one code per byte, 8 lines of 64 B for each 32 columns.
template <int PARTS, bool WIDE, bool MIN> static void int_unpack(const IntTiles* w, const uint8_t* p, uint8_t* lines) {
  const int64_t per_group = PARTS == 2 ? 1 : w->group / 32;
  for (int64_t b = 0; b < w->blocks; ++b, p += 256, lines += 512) {
    if (b % per_group == 0) p += header_bytes<WIDE, MIN>() * PARTS;
    for (int j = 0; j < 4; ++j) {
      const Codes both = load_codes(p + j * 64);
      store_codes(lines + j * 64, low(both));
      store_codes(lines + (4 + j) * 64, high(both));
    }
  }
}

template <int BITS, int PARTS, bool WIDE, bool MIN>
static void int_tiles(const IntTiles* w, const void* acts, int64_t rows, float* y, int64_t ldy, int64_t begin,
                      int64_t end, void* scratch) {
  uint8_t* lines = (uint8_t*)scratch;
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* p = w->data + (size_t)tile * w->tile_bytes;
    const int64_t tile_rows = w->out - tile * 16 < 16 ? w->out - tile * 16 : 16;
    float* to = y + tile * 16;
    if (rows == 1) {  // here and in full panels the compiler sees the strides
      int_block<BITS, PARTS, WIDE, MIN, false, 1>(w, p, lines, int_panel(acts, 0, 1, w->blocks, PARTS), 1, 0, to, ldy,
                                                  tile_rows);
      continue;
    }
    int64_t r = 0;
    if (rows >= kUnpackRows) {
      constexpr bool unpacked = BITS == 4;
      if constexpr (unpacked) int_unpack<PARTS, WIDE, MIN>(w, p, lines);
      static_assert(kPanelRows % kIntColumns == 0);
      for (; r + kPanelRows <= rows; r += kPanelRows) {
        const IntPanel panel = int_panel(acts, r, rows, w->blocks, PARTS);
        for (int64_t c = 0; c < kPanelRows; c += kIntColumns)
          int_block<BITS, PARTS, WIDE, MIN, unpacked, kIntColumns>(w, p, lines, panel, kPanelRows, c,
                                                                   to + (r + c) * ldy, ldy, tile_rows);
      }
    }
    for (; r < rows; r += kPanelRows) {
      const IntPanel panel = int_panel(acts, r, rows, w->blocks, PARTS);
      const int64_t n = rows - r < kPanelRows ? rows - r : kPanelRows;
      float* row = to + r * ldy;
      int64_t c = 0;
      for (; c + kIntColumns <= n; c += kIntColumns)
        int_block<BITS, PARTS, WIDE, MIN, false, kIntColumns>(w, p, lines, panel, n, c, row + c * ldy, ldy, tile_rows);
      if constexpr (kIntColumns > 4)
        for (; c + 4 <= n; c += 4)
          int_block<BITS, PARTS, WIDE, MIN, false, 4>(w, p, lines, panel, n, c, row + c * ldy, ldy, tile_rows);
      for (; c + 2 <= n; c += 2)
        int_block<BITS, PARTS, WIDE, MIN, false, 2>(w, p, lines, panel, n, c, row + c * ldy, ldy, tile_rows);
      for (; c < n; ++c)
        int_block<BITS, PARTS, WIDE, MIN, false, 1>(w, p, lines, panel, n, c, row + c * ldy, ldy, tile_rows);
    }
  }
}

template <int BITS, int PARTS>
static void int_headers(const IntTiles* w, const void* acts, int64_t rows, float* y, int64_t ldy, int64_t begin,
                        int64_t end, void* scratch) {
  if (w->wide_header && w->has_min) int_tiles<BITS, PARTS, true, true>(w, acts, rows, y, ldy, begin, end, scratch);
  else if (w->wide_header) int_tiles<BITS, PARTS, true, false>(w, acts, rows, y, ldy, begin, end, scratch);
  else if (w->has_min) int_tiles<BITS, PARTS, false, true>(w, acts, rows, y, ldy, begin, end, scratch);
  else int_tiles<BITS, PARTS, false, false>(w, acts, rows, y, ldy, begin, end, scratch);
}

static void integer(const IntTiles* w, const void* acts, int64_t rows, float* y, int64_t ldy, int64_t begin,
                    int64_t end, void* scratch) {
  const bool halves = w->group == 16;
  if (w->bits == 4 && halves) int_headers<4, 2>(w, acts, rows, y, ldy, begin, end, scratch);
  else if (w->bits == 4) int_headers<4, 1>(w, acts, rows, y, ldy, begin, end, scratch);
  else if (halves) int_headers<8, 2>(w, acts, rows, y, ldy, begin, end, scratch);
  else int_headers<8, 1>(w, acts, rows, y, ldy, begin, end, scratch);
}

// Exact values: scale * (code - zero), rounded, plus minimum, rounded. Columns [col_begin, col_end) of one tile.
static void integer_expand(const IntTiles* w, int64_t tile, int64_t col_begin, int64_t col_end, float* out) {
  const int parts = w->group == 16 ? 2 : 1;
  const size_t half_header = w->wide_header ? 64 : 32, header = half_header * (w->has_min ? 2 : 1);
  const size_t code_bytes = w->bits == 4 ? 256 : 512;
  const int64_t per_group = parts == 2 ? 1 : w->group / 32;
  const size_t group_bytes = header * (size_t)parts + code_bytes * (size_t)per_group;
  const uint8_t* base = w->data + (size_t)tile * w->tile_bytes;
  const I zero_code = set1i(w->zero);
  for (int64_t b = col_begin / 32; b < col_end / 32; ++b) {
    const uint8_t* group = base + (size_t)(b / per_group) * group_bytes;
    const uint8_t* codes = group + header * (size_t)parts + (size_t)(b % per_group) * code_bytes;
    for (int k = 0; k < 32; ++k, out += 16) {
      const uint8_t* h = group + (parts == 2 && k >= 16 ? header : 0);
      const F scale = w->wide_header ? load((const float*)h) : load_f16((const uint16_t*)h);
      uint8_t code[16];
      for (int r = 0; r < 16; ++r) {
        if (w->bits == 8) code[r] = codes[(k / 4) * 64 + r * 4 + k % 4];
        else code[r] = (uint8_t)(codes[((k & 15) / 4) * 64 + r * 4 + k % 4] >> (k >= 16 ? 4 : 0) & 15);
      }
      F value = scale * to_float(load_u8(code) - zero_code);
      if (w->has_min) {
        const uint8_t* m = h + half_header;
        value = value + (w->wide_header ? load((const float*)m) : load_f16((const uint16_t*)m));
      }
      store(out, value);
    }
  }
}

}  // namespace
}  // namespace headway
