// Integer pages: int8, int4 and int8 keys with int4 values (layouts in kernels.h).
//
// int8 pages are scored in integers: per page and row 2 x 64 x head_dim / 4 dot products of 4 bytes, half of f16's
// bytes. A query has one scale, the weights of a page one for every 32 keys (times the values' own scales), 127 levels
// each; the row's sum l stays that of the unrounded weights. Integer sums are exact: every level gives the same bits.
//
// int4 likewise, 4.5 bits an element at heads of 64: keys and queries, or values, go through a Walsh-Hadamard transform
// (log2 head_dim additions an element, once each; one more for what a head gives), which leaves scores as they are and
// spreads what stands out in one dimension over all (QuaRot, Ashkboos et al. 2024). Per 64 bytes 3 operations to unpack
// and 2 x 64 products a row. AVX2: a product and an addition a quad and row, in int16 over 8 quads, where int8 takes
// four operations.
#pragma once
#include "attention_page.h"

namespace headway {
namespace {

struct Coded {  // one int8 vector
  float scale;
  int32_t sum;
};

// The largest |x|: NaN if any is not finite, 0 if all are next to nothing.
HEADWAY_INLINE float largest_of(const float* x, int64_t n) {
  const I magnitude = set1i(0x7fffffff);
  I most = set1i(0);
  for (int64_t i = 0; i < n; i += 16) most = max(most, bits(load_n(x + i, n - i < 16 ? (int)(n - i) : 16)) & magnitude);
  const int32_t top = highest(most);
  float largest;
  __builtin_memcpy(&largest, &top, 4);
  return top >= 0x7f800000 ? __builtin_nanf("") : top < 0x0d800000 ? 0.0f : largest;
}

// n floats to codes -127..127 with one scale, largest |x| / 127. `codes` has room for n rounded up to 16; what is beyond
// n becomes 0.
static Coded encode(const float* x, int64_t n, int8_t* codes) {
  const float largest = largest_of(x, n);
  Coded found = {largest / 127.0f, 0};
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  I total = set1i(0);
  for (int64_t i = 0; i < n; i += 16) {
    I q = to_int(load_n(x + i, n - i < 16 ? (int)(n - i) : 16) * set1(inverse));
    if (inverse == 0.0f) q = set1i(0);
    total = total + q;
    store_i8(codes + i, q);
  }
  found.sum = sum(total);
  return found;
}

// n floats to codes 0..15, value = scale * (2 code - 15); returns the scale, largest |x| / 15. Room as for `encode`.
static float encode_nibbles(const float* x, int64_t n, int8_t* codes) {
  const float largest = largest_of(x, n), inverse = largest > 0.0f ? 7.5f / largest : 0.0f;
  for (int64_t i = 0; i < n; i += 16) {
    I q = to_int(fma(load_n(x + i, n - i < 16 ? (int)(n - i) : 16), set1(inverse), set1(7.5f)));
    if (inverse == 0.0f) q = set1i(0);
    store_i8(codes + i, q);
  }
  return largest / 15.0f;
}

// One level of the transform within 16 lanes: lanes l and l ^ H become their sum and their difference.
template <int H> HEADWAY_INLINE F butterfly(F v) {
  const I odd = iota() & set1i(H);
  return fma(v, where_less(set1i(0), odd, set1(-1.0f), set1(1.0f)), swap<H>(v));
}

// The Walsh-Hadamard transform, of length 1 and its own inverse, of every walsh_block(d) dimensions. `y`, which may be
// x, has room for d rounded up to 16.
static void walsh(const float* x, int64_t d, float* y) {
  const int64_t n = walsh_block(d);
  const F unit = set1(1.0f / __builtin_sqrtf((float)n));
  for (int64_t i = 0; i < d; i += 16) {
    F v = load_n(x + i, d - i < 16 ? (int)(d - i) : 16) * unit;
    if (n > 1) v = butterfly<1>(v);
    if (n > 2) v = butterfly<2>(v);
    if (n > 4) v = butterfly<4>(v);
    if (n > 8) v = butterfly<8>(v);
    store(y + i, v);
  }
  for (int64_t half = 16; half < n; half *= 2)
    for (int64_t begin = 0; begin < d; begin += 2 * half)
      for (int64_t i = begin; i < begin + half; i += 16) {
        const F a = load(y + i), b = load(y + i + half);
        store(y + i, a + b);
        store(y + i + half, a - b);
      }
}

// One key of d dimensions into its lines, or one value; returns its scale. `line` and `turned` are scratch.
template <int BITS> static float write_key(const float* k, int64_t d, uint8_t* key, int8_t* line, float* turned) {
  float scale;
  if constexpr (BITS == 8) {
    scale = encode(k, d, line).scale;
    for (int64_t i = 0; i < (d + 3) / 4 * 4; ++i) key[(i / 4) * 64 + i % 4] = (uint8_t)((i < d ? line[i] : 0) + 128);
  } else {
    walsh(k, d, turned);
    scale = encode_nibbles(turned, d, line);
    for (int64_t i = 0; i < d; i += 8)
      for (int j = 0; j < 4; ++j) key[i * 8 + j] = (uint8_t)(line[i + j] | line[i + 4 + j] << 4);
  }
  return scale;
}

template <int BITS>
static float write_value(const float* v, int64_t d, int64_t dp, uint8_t* value, int8_t* line, float* turned) {
  float scale;
  if constexpr (BITS == 8) {
    scale = encode(v, d, line).scale;
    for (int64_t i = 0; i < dp; ++i) value[(i / 16) * 1024 + (i % 16) * 4] = (uint8_t)((i < d ? line[i] : 0) + 128);
  } else {
    walsh(v, d, turned);
    scale = encode_nibbles(turned, d, line);
    __builtin_memset(line + dp, 0, 16);
    for (int64_t i = 0; i < dp; i += 32)
      for (int j = 0; j < 16; ++j) value[i * 32 + j * 4] = (uint8_t)(line[i + j] | line[i + 16 + j] << 4);
  }
  return scale;
}

template <int KEYS, int VALUES>
static void kv_write_codes(const PageShape* shape, uint8_t* page, int64_t at, const float* k, const float* v) {
  const int64_t d = shape->head_dim, dp = shape->padded_dim;
  int8_t line[kMostCodedDim + 32];
  float turned[kMostCodedDim + 16];
  for (int64_t h = 0; h < shape->kv_heads; ++h, k += d, v += d, page += page_head_bytes(shape)) {
    uint8_t* values = page + page_key_bytes(shape);
    float* scales = (float*)(values + page_value_bytes(shape));
    uint8_t* key = page + (at / 16) * (int64_t)(page_key_bytes(shape) / 4) + at % 16 * 4;
    scales[at] = write_key<KEYS>(k, d, key, line, turned);
    scales[kPage + at] = write_value<VALUES>(v, d, dp, values + (at / 4) * 64 + at % 4, line, turned);
  }
}

struct Query {
  const int8_t* codes;
  Coded coded;
};

// What a line of 64 bytes holds: the codes of one part, or of two in its nibbles.
template <int BITS> struct Line {
  static constexpr int parts = 8 / BITS;
  Codes part[parts];
};
template <int BITS> HEADWAY_INLINE Line<BITS> load_line(const uint8_t* p) {
  const Codes both = load_codes(p);
  if constexpr (BITS == 8) return {{both}};
  else return {{low(both), high(both)}};
}

// `lines`: of 16 keys.
template <int BITS, int ROWS, bool AHEAD>
HEADWAY_INLINE void score_codes(const PageView& page, const Query* q, const float* scales, int64_t lines,
                                const int32_t* lo, const int32_t* hi, float factor, float cap, float* s) {
  using Dots = PageDot<BITS>;
  constexpr int step = kKeyVectors, parts = Line<BITS>::parts;
  constexpr int64_t most = Dots::quads / parts;
  for (int block = page.begin / 16; block * 16 < page.end; block += step) {
    Dots acc[ROWS][step];
    const uint8_t* key = (const uint8_t*)page.k + block * lines * 64;
    const char* ahead = page.next + block * lines * 64;
    for (int64_t i = 0; i < lines;) {
      for (const int64_t end = lines - i < most ? lines : i + most; i < end; ++i) {
        Line<BITS> line[step];
        for (int j = 0; j < step; ++j) {
          if constexpr (AHEAD) fetch(ahead + (j * lines + i) * 64);
          line[j] = load_line<BITS>(key + ((block + j < 4 ? j : 0) * lines + i) * 64);
        }
        for (int r = 0; r < ROWS; ++r)
          for (int j = 0; j < step; ++j)
            for (int p = 0; p < parts; ++p) Dots::add(acc[r][j], line[j].part[p], q[r].codes + 4 * (parts * i + p));
      }
      for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < step; ++j) Dots::settle(acc[r][j]);
    }
    for (int j = 0; j < step && block + j < 4; ++j)
      for (int r = 0; r < ROWS; ++r) {
        const F dot = to_float(Dots::total(acc[r][j], q[r].coded.sum));
        const F x = dot * (load(scales + (block + j) * 16) * set1(q[r].coded.scale * factor));
        keep_score(page, block + j, x, lo[r], hi[r], cap, s + r * kPage);
      }
  }
}

// The weights of half a page times the values' scales, as codes.
HEADWAY_INLINE Coded encode_weights(const PageView& page, int half, const float* p, const float* scales, int32_t lo,
                                    int32_t hi, int8_t* codes) {
  float weighted[32];
  for (int j = 0; j < 32; j += 16) {
    const I position = iota() + set1i((int32_t)page.first + half * 32 + j);
    F x = load(p + half * 32 + j) * load(scales + half * 32 + j);
    x = where_less(position, set1i(lo), zero(), x);  // an unwritten key has no scale
    store(weighted + j, where_less(position, set1i(hi), x, zero()));
  }
  return encode(weighted, 32, codes + half * 32);
}

// The weights of some rows on a page, half by half.
template <int ROWS> struct Weights {
  int8_t codes[ROWS][kPage];
  Coded coded[ROWS][2];
  float back[ROWS];  // what earlier sums are multiplied by
};

// Sixteen dimensions of o, dp floats a row: those of one PART of 16 lines.
template <int BITS, int PART, int ROWS, bool AHEAD>
HEADWAY_INLINE void mix_codes(const uint8_t* value, const char* ahead, const Weights<ROWS>& w, int first, int last,
                              int64_t dp, float* o) {
  using Dots = PageDot<BITS>;
  F acc[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    acc[r] = load(o + r * dp);
    if (w.back[r] != 1.0f) acc[r] = acc[r] * set1(w.back[r]);
  }
  for (int half = first; half < last; ++half) {
    Dots dots[ROWS];
    for (int i = half * 8; i < half * 8 + 8; ++i) {
      if constexpr (AHEAD && PART == 0) fetch(ahead + i * 64);
      const Codes line = load_line<BITS>(value + i * 64).part[PART];
      for (int r = 0; r < ROWS; ++r) Dots::add(dots[r], line, w.codes[r] + 4 * i);
    }
    for (int r = 0; r < ROWS; ++r) {
      Dots::settle(dots[r]);
      acc[r] = fma(to_float(Dots::total(dots[r], w.coded[r][half].sum)), set1(w.coded[r][half].scale), acc[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) store(o + r * dp, acc[r]);
}

template <int KEYS, int VALUES, int ROWS, bool AHEAD>
static void page_codes(PageView page, const AttendArgs* a, const Query* q, int64_t row, float* s) {
  const int32_t *lo = a->lo + row, *hi = a->hi + row;
  if (!narrow<ROWS>(page, lo, hi)) return;
  const int64_t keys = (int64_t)page_key_bytes(&a->shape);
  const float* scales = (const float*)((const uint8_t*)page.v + page_value_bytes(&a->shape));
  score_codes<KEYS, ROWS, AHEAD>(page, q + row, scales, keys / (4 * kLine), lo, hi, a->scale, a->softcap, s);
  Weights<ROWS> w;
  const int first = page.begin / 32, last = (page.end + 31) / 32;
  soften_rows<ROWS>(page, lo, hi, s, a->m + row, a->l + row, w.back);
  for (int r = 0; r < ROWS; ++r) {
    for (int half = first; half < last; ++half)
      w.coded[r][half] = encode_weights(page, half, s + r * kPage, scales + kPage, lo[r], hi[r], w.codes[r]);
  }
  const uint8_t* value = (const uint8_t*)page.v;
  const char* ahead = page.next + keys;
  float* o = a->o + row * page.dp;
  for (int64_t at = 0; at < page.dp; value += 16 * kLine, ahead += 16 * kLine) {
    mix_codes<VALUES, 0, ROWS, AHEAD>(value, ahead, w, first, last, page.dp, o + at);
    at += 16;
    if constexpr (VALUES == 4) {
      if (at < page.dp) mix_codes<VALUES, 1, ROWS, AHEAD>(value, ahead, w, first, last, page.dp, o + at);
      at += 16;
    }
  }
}

template <int KEYS, int VALUES, bool AHEAD>
static void some_codes(const PageView& page, const AttendArgs* a, const Query* q, int64_t r, float* s) {
  switch (a->rows - r) {
    case 1: return page_codes<KEYS, VALUES, 1, AHEAD>(page, a, q, r, s);
    case 2: return page_codes<KEYS, VALUES, 2, AHEAD>(page, a, q, r, s);
    case 3: return page_codes<KEYS, VALUES, 3, AHEAD>(page, a, q, r, s);
    default: return page_codes<KEYS, VALUES, 4, AHEAD>(page, a, q, r, s);
  }
}

template <int KEYS, int VALUES>
static void page_all_codes(const PageView& page, const AttendArgs* a, const Query* q, float* s) {
  if (page.next) some_codes<KEYS, VALUES, true>(page, a, q, 0, s);
  for (int64_t r = page.next ? 4 : 0; r < a->rows; r += 4) some_codes<KEYS, VALUES, false>(page, a, q, r, s);
}

// The rows' queries as codes; from `scratch`.
static const Query* encode_queries(const AttendArgs* a, float* scratch) {
  const int64_t room = (a->shape.head_dim + 7) / 8 * 8;
  Query* queries = (Query*)scratch;
  int8_t line[kMostCodedDim + 16];
  float turned[kMostCodedDim + 16];
  int8_t* codes = (int8_t*)(queries + a->rows);
  for (int64_t r = 0; r < a->rows; ++r, codes += room) {
    const float* q = a->q[r];
    if (page_key_bits(&a->shape) == 4) {
      walsh(q, a->shape.head_dim, turned);
      q = turned;
    }
    queries[r] = {codes, encode(q, a->shape.head_dim, line)};
    __builtin_memcpy(codes, line, (size_t)room);
  }
  return queries;
}

}  // namespace
}  // namespace headway
