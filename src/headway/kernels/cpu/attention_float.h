// Pages of f32 and f16 (layouts in kernels.h).
//
// Per page (64 keys) and query row: 2 x 64 x head_dim FMAs; per page, once for up to kQueryRows rows: its bytes,
// 64 x 2 head_dim x 2 (f16). Scores have one key per lane, so nothing is summed across lanes: each score is a chain
// over the head's dimensions in order, each output element a chain over the keys in order. A page of f16 is widened
// once when many rows use it. One maximum, one exponential and one rescale per row and page. AVX2, one core of a Zen 3,
// prompt of 512, heads of 64: 60 GFLOP/s of 94.
#pragma once
#include "attention_page.h"

namespace headway {
namespace {

template <bool HALF> HEADWAY_INLINE F kv_load(const void* p, int64_t at) {
  if constexpr (HALF) return load_f16((const uint16_t*)p + at);
  else return load((const float*)p + at);
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

}  // namespace
}  // namespace headway
