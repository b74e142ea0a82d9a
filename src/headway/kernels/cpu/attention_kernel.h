// Attention of a few query rows over pages of one KV head (layouts in kernels.h). Included after ops_kernel.h.
//
// Per page (64 keys) and query row: 2 x 64 x head_dim FMAs; per page, once for up to kQueryRows rows: its bytes,
// 64 x 2 head_dim x 2 (f16). Scores have one key per lane, so nothing is summed across lanes: each score is a chain
// over the head's dimensions in order, each output element a chain over the keys in order. A page of f16 is widened
// once when many rows use it. One maximum, one exponential and one rescale per row and page. AVX2, one core of a Zen 3,
// prompt of 512, heads of 64: 60 GFLOP/s of 94.
//
// int8 pages are scored in integers: per page and row 2 x 64 x head_dim / 4 dot products of 4 bytes, half of f16's
// bytes. A query has one scale, the weights of a page one for every 32 keys (times the values' own scales), 127 levels
// each; the row's sum l stays that of the unrounded weights. Integer sums are exact: every level gives the same bits.
//
// int4 pages likewise, 4.5 bits an element at heads of 64: keys, values and queries go through a Walsh-Hadamard transform
// (log2 head_dim additions an element, once each; one more for what a head gives), which leaves scores as they are and
// spreads what stands out in one dimension over all (QuaRot, Ashkboos et al. 2024). Per 64 bytes 3 operations to unpack
// and 2 x 64 products a row. AVX2: a product and an addition a quad and row, in int16 over 8 quads, where int8 takes
// four operations.
#pragma once
#include "ops_kernel.h"

namespace headway {
namespace {

constexpr int kPage = headway::kPageTokens;

template <bool HALF> HEADWAY_INLINE F kv_load(const void* p, int64_t at) {
  if constexpr (HALF) return load_f16((const uint16_t*)p + at);
  else return load((const float*)p + at);
}

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

template <int BITS>
static void kv_write_codes(const PageShape* shape, uint8_t* page, int64_t at, const float* k, const float* v) {
  const int64_t d = shape->head_dim, dp = shape->padded_dim;
  int8_t line[kMostCodedDim + 32];
  float turned[BITS == 4 ? kMostCodedDim + 16 : 1];
  for (int64_t h = 0; h < shape->kv_heads; ++h, k += d, v += d, page += page_head_bytes(shape)) {
    uint8_t* values = page + page_key_bytes(shape);
    float* scales = (float*)(values + page_value_bytes(shape));
    uint8_t* key = page + (at / 16) * (int64_t)(page_key_bytes(shape) / 4) + at % 16 * 4;
    uint8_t* value = values + (at / 4) * 64 + at % 4;
    if constexpr (BITS == 8) {
      scales[at] = encode(k, d, line).scale;
      for (int64_t i = 0; i < 4 * page_quads(shape); ++i)
        key[(i / 4) * 64 + i % 4] = (uint8_t)((i < d ? line[i] : 0) + 128);
      scales[kPage + at] = encode(v, d, line).scale;
      for (int64_t i = 0; i < dp; ++i) value[(i / 16) * 1024 + (i % 16) * 4] = (uint8_t)((i < d ? line[i] : 0) + 128);
    } else {
      walsh(k, d, turned);
      scales[at] = encode_nibbles(turned, d, line);
      for (int64_t i = 0; i < d; i += 8)
        for (int j = 0; j < 4; ++j) key[i * 8 + j] = (uint8_t)(line[i + j] | line[i + 4 + j] << 4);
      walsh(v, d, turned);
      scales[kPage + at] = encode_nibbles(turned, d, line);
      __builtin_memset(line + dp, 0, 16);
      for (int64_t i = 0; i < dp; i += 32)
        for (int j = 0; j < 16; ++j) value[i * 32 + j * 4] = (uint8_t)(line[i + j] | line[i + 16 + j] << 4);
    }
  }
}

static void kv_write(const PageShape* shape, void* page, int64_t at, const float* k, const float* v) {
  if (shape->store == kPageInt8) return kv_write_codes<8>(shape, (uint8_t*)page, at, k, v);
  if (shape->store == kPageInt4) return kv_write_codes<4>(shape, (uint8_t*)page, at, k, v);
  const int64_t d = shape->head_dim, dp = shape->padded_dim, per_head = kPage * (d + dp);
  for (int64_t h = 0; h < shape->kv_heads; ++h, k += d, v += d) {
    const int64_t key = h * per_head + (at / 16) * d * 16 + at % 16;
    const int64_t value = h * per_head + kPage * d + at * dp;
    if (shape->store == kPageF16) {
      uint16_t* to = (uint16_t*)page;
      uint16_t line[16];
      for (int64_t i = 0; i < d; i += 16) {
        const int n = d - i < 16 ? (int)(d - i) : 16;
        store_f16(line, load_n(k + i, n));
        for (int j = 0; j < n; ++j) to[key + (i + j) * 16] = line[j];
        store_f16(to + value + i, load_n(v + i, n));
      }
    } else {
      float* to = (float*)page;
      for (int64_t i = 0; i < d; ++i) to[key + i * 16] = k[i];
      for (int64_t i = 0; i < d; i += 16) store(to + value + i, load_n(v + i, d - i < 16 ? (int)(d - i) : 16));
    }
  }
}

constexpr int kLine = 64;
HEADWAY_INLINE void fetch(const char* p) { __builtin_prefetch(p, 0, 2); }

struct PageView {
  const void* k;  // [4][d][16]
  const void* v;  // [64][dp], or with `tall` [dp / 16][64][16]
  int64_t d, dp;
  const char* next;    // the same head's part of the next page, to be fetched meanwhile; or null
  int64_t first;       // position of its first key
  int32_t begin, end;  // keys of the page to look at
};

// Sixteen scores of one row into s[64]; keys outside its range get -inf.
HEADWAY_INLINE void keep_score(const PageView& page, int block, F x, int32_t lo, int32_t hi, float cap, float* s) {
  const int32_t first = (int32_t)page.first + block * 16;
  if (cap > 0.0f) x = set1(cap) * hyperbolic_tangent(x / set1(cap));
  if (lo > first || hi < first + 16) {
    const I position = iota() + set1i(first);
    x = where_less(position, set1i(lo), set1(-kInfinity), x);
    x = where_less(position, set1i(hi), x, set1(-kInfinity));
  }
  store(s + block * 16, x);
}

// Scores of ROWS rows into s[row][64]; keys outside a row's range get -inf. AHEAD: fetch the next page's keys.
template <bool HALF, int ROWS, bool AHEAD>
HEADWAY_INLINE void score_rows(const PageView& page, const float* const* q, const int32_t* lo, const int32_t* hi,
                               float factor, float cap, float* s) {
  constexpr int step = kKeyVectors;
  for (int block = page.begin / 16; block * 16 < page.end; block += step) {
    F acc[ROWS][step];
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < step; ++j) acc[r][j] = zero();
    const char* ahead = page.next + block / step * page.d * (step * 16 * (HALF ? 2 : 4));
    for (int64_t d = 0; d < page.d; ++d) {
      if constexpr (AHEAD)
        for (int line = 0; line < step * 16 * (HALF ? 2 : 4); line += kLine, ahead += kLine) fetch(ahead);
      F key[step];
      for (int j = 0; j < step; ++j) key[j] = kv_load<HALF>(page.k, (((block + j) & 3) * page.d + d) * 16);
      for (int r = 0; r < ROWS; ++r) {
        const F a = set1(q[r][d]);
        for (int j = 0; j < step; ++j) acc[r][j] = fma(a, key[j], acc[r][j]);
      }
    }
    for (int j = 0; j < step && block + j < 4; ++j)
      for (int r = 0; r < ROWS; ++r)
        keep_score(page, block + j, acc[r][j] * set1(factor), lo[r], hi[r], cap, s + r * kPage);
  }
}

// The highest of the row's scores here and of `m`.
HEADWAY_INLINE float row_top(const float* s, int from, int to, float m) {
  F top = load(s + from);
  for (int j = from + 16; j < to; j += 16) top = max(top, load(s + j));
  const float here = highest(top);
  return here > m ? here : m;
}

// s becomes the weights e^(s - now), 0 for keys that the row does not see; returns their sum.
HEADWAY_INLINE float row_weights(const PageView& page, int from, int to, int32_t lo, int32_t hi, float now, float* s) {
  F total = zero();
  for (int j = from; j < to; j += 16) {
    const int32_t first = (int32_t)page.first + j;
    F p = exponential(load(s + j) - set1(now));
    if (lo > first || hi < first + 16) {
      const I position = iota() + set1i(first);
      p = where_less(position, set1i(lo), zero(), p);
      p = where_less(position, set1i(hi), p, zero());
    }
    store(s + j, p);
    total = total + p;
  }
  return sum(total);
}

// Scores become weights e^(s - m), for each row; `back`: what its earlier sums must be multiplied by.
template <int ROWS>
HEADWAY_INLINE void soften_rows(const PageView& page, const int32_t* lo, const int32_t* hi, float* s, float* m,
                                float* l, float* back) {
  const int from = page.begin / 16 * 16, to = (page.end + 15) / 16 * 16;
  float now[16], change[16] = {};
  for (int r = 0; r < ROWS; ++r) {
    now[r] = row_top(s + r * kPage, from, to, m[r]);
    change[r] = m[r] - now[r];
  }
  store(change, exponential(load(change)));
  for (int r = 0; r < ROWS; ++r) {
    float* row = s + r * kPage;
    back[r] = 1.0f;
    if (now[r] == -kInfinity) {  // nothing seen yet: no key of this page, or NaN, which must not be lost
      bool bad = false;
      for (int j = from; j < to; j += 16) bad |= any_nan(load(row + j));
      for (int j = from; j < to; j += 16) store(row + j, bad ? set1(__builtin_nanf("")) : zero());
      if (bad) l[r] = __builtin_nanf("");
      continue;
    }
    const float total = row_weights(page, from, to, lo[r], hi[r], now[r], row);
    if (m[r] != now[r]) back[r] = m[r] == -kInfinity ? 0.0f : change[r];
    l[r] = __builtin_fmaf(l[r], back[r], total);
    m[r] = now[r];
  }
}

template <bool HALF, int ROWS, int VECTORS, bool AHEAD, bool TALL = false>
HEADWAY_INLINE void mix_columns(const PageView& page, int64_t at, const float* p, const float* back, float* o) {
  F acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i) {
      acc[r][i] = load(o + r * page.dp + at + i * 16);
      if (back[r] != 1.0f) acc[r][i] = acc[r][i] * set1(back[r]);
    }
  const char* ahead = page.next + (kPage * page.d + at) * (HALF ? 2 : 4);
  for (int j = page.begin; j < page.end; ++j) {
    if constexpr (AHEAD)
      for (int line = 0; line < VECTORS * 16 * (HALF ? 2 : 4); line += kLine) fetch(ahead + j * page.dp * (HALF ? 2 : 4) + line);
    F value[VECTORS];
    for (int i = 0; i < VECTORS; ++i)
      value[i] = kv_load<HALF>(page.v, TALL ? (at + i * 16) * kPage + j * 16 : j * page.dp + at + i * 16);
    for (int r = 0; r < ROWS; ++r) {
      const F a = set1(p[r * kPage + j]);
      for (int i = 0; i < VECTORS; ++i) acc[r][i] = fma(a, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i) store(o + r * page.dp + at + i * 16, acc[r][i]);
}

// Leaves of a page what some of the rows see; false if that is nothing.
template <int ROWS> HEADWAY_INLINE bool narrow(PageView& page, const int32_t* lo, const int32_t* hi) {
  int32_t least = lo[0], most = hi[0];
  for (int r = 1; r < ROWS; ++r) {
    least = lo[r] < least ? lo[r] : least;
    most = hi[r] > most ? hi[r] : most;
  }
  const int32_t first = (int32_t)page.first;
  if (least - first > page.begin) page.begin = least - first;
  if (most - first < page.end) page.end = most - first;
  return page.begin < page.end;
}

template <bool HALF, int ROWS, bool AHEAD, bool TALL = false>
HEADWAY_INLINE void mix_rows(const PageView& page, const float* p, const float* back, float* o) {
  constexpr int vectors = kKeyVectors >= 4 ? 4 : 1;
  int64_t at = 0;
  for (; at + 16 * vectors <= page.dp; at += 16 * vectors)
    mix_columns<HALF, ROWS, vectors, AHEAD, TALL>(page, at, p, back, o);
  if constexpr (vectors > 1)
    for (; at + 32 <= page.dp; at += 32) mix_columns<HALF, ROWS, 2, AHEAD, TALL>(page, at, p, back, o);
  for (; at < page.dp; at += 16) mix_columns<HALF, ROWS, 1, AHEAD, TALL>(page, at, p, back, o);
}

template <bool HALF, int ROWS, bool AHEAD>
static void page_rows(PageView page, const AttendArgs* a, int64_t row, float* s) {
  const int32_t *lo = a->lo + row, *hi = a->hi + row;
  if (!narrow<ROWS>(page, lo, hi)) return;
  score_rows<HALF, ROWS, AHEAD>(page, a->q + row, lo, hi, a->scale, a->softcap, s);
  float back[ROWS];
  soften_rows<ROWS>(page, lo, hi, s, a->m + row, a->l + row, back);
  mix_rows<HALF, ROWS, AHEAD>(page, s, back, a->o + row * page.dp);
}

template <bool HALF, bool AHEAD> static void some_rows(const PageView& page, const AttendArgs* a, int64_t r, float* s) {
  switch (a->rows - r) {
    case 1: return page_rows<HALF, 1, AHEAD>(page, a, r, s);
    case 2: return page_rows<HALF, 2, AHEAD>(page, a, r, s);
    case 3: return page_rows<HALF, 3, AHEAD>(page, a, r, s);
    default: return page_rows<HALF, 4, AHEAD>(page, a, r, s);
  }
}

template <bool HALF> static void page_all(const PageView& page, const AttendArgs* a, float* s) {
  int64_t r = 0;
  if (page.next) {
    some_rows<HALF, true>(page, a, r, s);
    r += 4;
  }
  for (; r < a->rows; r += 4) some_rows<HALF, false>(page, a, r, s);
}

// Many rows: all their scores before all their sums, so that either half of a page, widened, stays in the first-level
// cache. `wide` has room for the larger half.
template <int ROWS, bool VALUES>
static void tall_rows(PageView page, const AttendArgs* a, int64_t row, float* s, float* back) {
  const int32_t *lo = a->lo + row, *hi = a->hi + row;
  if (!narrow<ROWS>(page, lo, hi)) return;
  s += row * kPage;
  if constexpr (VALUES) {
    mix_rows<false, ROWS, false, true>(page, s, back + row, a->o + row * page.dp);
  } else {
    score_rows<false, ROWS, false>(page, a->q + row, lo, hi, a->scale, a->softcap, s);
    soften_rows<ROWS>(page, lo, hi, s, a->m + row, a->l + row, back + row);
  }
}

template <int ROWS, bool VALUES>
static void tall_from(const PageView& page, const AttendArgs* a, int64_t row, float* s, float* back) {
  for (; row + ROWS <= a->rows; row += ROWS) tall_rows<ROWS, VALUES>(page, a, row, s, back);
  if constexpr (ROWS > 1) tall_from<ROWS / 2, VALUES>(page, a, row, s, back);
}

template <bool HALF> static void page_tall(PageView page, const AttendArgs* a, float* s, float* back, float* wide) {
  const void *k = page.k, *v = page.v;
  page.next = nullptr;
  if constexpr (HALF) {
    for (int64_t e = 0; e < kPage * page.d; e += 16) store(wide + e, kv_load<HALF>(k, e));
    page.k = wide;
  }
  tall_from<kQueryRows, false>(page, a, 0, s, back);
  for (int64_t at = 0; at < page.dp; at += 16)
    for (int64_t j = 0; j < kPage; ++j) store(wide + at * kPage + j * 16, kv_load<HALF>(v, j * page.dp + at));
  page.v = wide;
  tall_from<kQueryRows, true>(page, a, 0, s, back);
}

struct Query {  // of int8 and int4 pages
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

template <int BITS, int ROWS, bool AHEAD>
static void page_codes(PageView page, const AttendArgs* a, const Query* q, int64_t row, float* s) {
  const int32_t *lo = a->lo + row, *hi = a->hi + row;
  if (!narrow<ROWS>(page, lo, hi)) return;
  const int64_t keys = (int64_t)page_key_bytes(&a->shape);
  const float* scales = (const float*)((const uint8_t*)page.v + page_value_bytes(&a->shape));
  score_codes<BITS, ROWS, AHEAD>(page, q + row, scales, keys / (4 * kLine), lo, hi, a->scale, a->softcap, s);
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
    mix_codes<BITS, 0, ROWS, AHEAD>(value, ahead, w, first, last, page.dp, o + at);
    at += 16;
    if constexpr (BITS == 4) {
      if (at < page.dp) mix_codes<BITS, 1, ROWS, AHEAD>(value, ahead, w, first, last, page.dp, o + at);
      at += 16;
    }
  }
}

template <int BITS, bool AHEAD>
static void some_codes(const PageView& page, const AttendArgs* a, const Query* q, int64_t r, float* s) {
  switch (a->rows - r) {
    case 1: return page_codes<BITS, 1, AHEAD>(page, a, q, r, s);
    case 2: return page_codes<BITS, 2, AHEAD>(page, a, q, r, s);
    case 3: return page_codes<BITS, 3, AHEAD>(page, a, q, r, s);
    default: return page_codes<BITS, 4, AHEAD>(page, a, q, r, s);
  }
}

template <int BITS> static void page_all_codes(const PageView& page, const AttendArgs* a, const Query* q, float* s) {
  if (page.next) some_codes<BITS, true>(page, a, q, 0, s);
  for (int64_t r = page.next ? 4 : 0; r < a->rows; r += 4) some_codes<BITS, false>(page, a, q, r, s);
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
    if (a->shape.store == kPageInt4) {
      walsh(q, a->shape.head_dim, turned);
      q = turned;
    }
    queries[r] = {codes, encode(q, a->shape.head_dim, line)};
    __builtin_memcpy(codes, line, (size_t)room);
  }
  return queries;
}

static void attend(const AttendArgs* a) {
  const int64_t d = a->shape.head_dim, dp = a->shape.padded_dim;
  const size_t key_bytes = page_key_bytes(&a->shape), head_bytes = page_head_bytes(&a->shape);
  const bool half = a->shape.store == kPageF16, coded = page_coded(&a->shape);
  const bool tall = !coded && a->rows > kFewRows;
  float* s = a->scratch;  // [rows that are scored together][64]
  float* rest = s + (tall ? a->rows : 4) * kPage;
  const Query* queries = coded ? encode_queries(a, rest) : nullptr;
  for (int64_t i = a->key_begin / kPage; i * kPage < a->key_end; ++i) {
    PageView page;
    page.d = d;
    page.dp = dp;
    page.first = i * kPage;
    page.begin = (int32_t)(a->key_begin > page.first ? a->key_begin - page.first : 0);
    page.end = (int32_t)(a->key_end - page.first < kPage ? a->key_end - page.first : kPage);
    page.k = (const char*)a->pages[i] + (size_t)a->kv_head * head_bytes;
    page.v = (const char*)page.k + key_bytes;
    const bool more = (i + 1) * kPage < a->fetch_end;
    page.next = more ? (const char*)a->pages[i + 1] + (size_t)a->kv_head * head_bytes : nullptr;
    if (coded) {
      if (a->shape.store == kPageInt8) page_all_codes<8>(page, a, queries, s);
      else page_all_codes<4>(page, a, queries, s);
    } else if (tall) {
      float* wide = rest + (a->rows + 15) / 16 * 16;
      if (half) page_tall<true>(page, a, s, rest, wide);
      else page_tall<false>(page, a, s, rest, wide);
    } else if (half) {
      page_all<true>(page, a, s);
    } else {
      page_all<false>(page, a, s);
    }
  }
}

static void attend_merge(float* m, float* l, float* o, const float* m2, const float* l2, const float* o2, int64_t rows,
                         int64_t dp) {
  for (int64_t r = 0; r < rows; ++r, o += dp, o2 += dp) {
    if (l2[r] == 0.0f) continue;  // saw no key
    if (l[r] == 0.0f) {
      m[r] = m2[r];
      l[r] = l2[r];
      for (int64_t i = 0; i < dp; i += 16) store(o + i, load(o2 + i));
      continue;
    }
    const float top = m[r] > m2[r] ? m[r] : m2[r];
    float weights[16];
    store(weights, exponential(set1(m[r] - top)));
    const float a = weights[0];
    store(weights, exponential(set1(m2[r] - top)));
    const float b = weights[0];
    m[r] = top;
    l[r] = __builtin_fmaf(l2[r], b, l[r] * a);
    for (int64_t i = 0; i < dp; i += 16) store(o + i, fma(load(o2 + i), set1(b), load(o + i) * set1(a)));
  }
}

static void attend_finish(const PageShape* shape, const float* l, float* o, int64_t rows, float* const* out) {
  const int64_t d = shape->head_dim;
  for (int64_t r = 0; r < rows; ++r, o += shape->padded_dim) {
    if (shape->store == kPageInt4) walsh(o, d, o);
    const F inverse = set1(1.0f / l[r]);
    for (int64_t i = 0; i < d; i += 16) {
      const F v = load(o + i) * inverse;
      if (d - i >= 16) store(out[r] + i, v);
      else store_part(out[r] + i, v, (int)(d - i));
    }
  }
}

}  // namespace
}  // namespace headway
