// Attention of a few query rows over pages of one KV head (layouts in kernels.h). Included after ops_kernel.h.
//
// Per page (64 keys) and query row: 2 x 64 x head_dim FMAs; per page, once for up to kQueryRows rows: its bytes,
// 64 x 2 head_dim x 2 (f16). Scores have one key per lane, so nothing is summed across lanes: each score is a chain
// over the head's dimensions in order, each output element a chain over the keys in order. A page of f16 is widened
// once when several blocks of rows use it. One maximum, one exponential and one rescale per row and page.
#pragma once
#include "ops_kernel.h"

namespace headway {
namespace {

constexpr int kPage = headway::kPageTokens;

template <bool HALF> HEADWAY_INLINE F kv_load(const void* p, int64_t at) {
  if constexpr (HALF) return load_f16((const uint16_t*)p + at);
  else return load((const float*)p + at);
}

static void kv_write(const PageShape* shape, void* page, int64_t at, const float* k, const float* v) {
  const int64_t d = shape->head_dim, dp = shape->padded_dim;
  const int64_t per_head = (int64_t)page_head_elements(shape);
  for (int64_t h = 0; h < shape->kv_heads; ++h, k += d, v += d) {
    const int64_t key = h * per_head + (at / 16) * d * 16 + at % 16;
    const int64_t value = h * per_head + kPage * d + at * dp;
    if (shape->half) {
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
  const void* v;  // [64][dp]
  int64_t d, dp;
  const char* next;    // the same head's part of the next page, to be fetched meanwhile; or null
  int64_t first;       // position of its first key
  int32_t begin, end;  // keys of the page to look at
};

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
    for (int j = 0; j < step && block + j < 4; ++j) {
      const I position = iota() + set1i((int32_t)page.first + (block + j) * 16);
      for (int r = 0; r < ROWS; ++r) {
        F x = acc[r][j] * set1(factor);
        if (cap > 0.0f) x = set1(cap) * hyperbolic_tangent(x / set1(cap));
        x = where_less(position, set1i(lo[r]), set1(-kInfinity), x);
        store(s + r * kPage + (block + j) * 16, where_less(position, set1i(hi[r]), x, set1(-kInfinity)));
      }
    }
  }
}

// s becomes the weights e^(s - m); returns what the row's earlier sums must be multiplied by.
HEADWAY_INLINE float soften_row(const PageView& page, int32_t lo, int32_t hi, float* s, float* m, float* l) {
  const int from = page.begin / 16 * 16, to = (page.end + 15) / 16 * 16;
  F top = load(s + from);
  for (int j = from + 16; j < to; j += 16) top = max(top, load(s + j));
  const float highest_here = highest(top);
  const float now = highest_here > *m ? highest_here : *m;
  if (now == -kInfinity) {  // nothing seen yet: no key of this page, or NaN, which must not be lost
    bool bad = false;
    for (int j = from; j < to; j += 16) bad |= any_nan(load(s + j));
    for (int j = from; j < to; j += 16) store(s + j, bad ? set1(__builtin_nanf("")) : zero());
    if (bad) *l = __builtin_nanf("");
    return 1.0f;
  }
  F total = zero();
  for (int j = from; j < to; j += 16) {
    const I position = iota() + set1i((int32_t)page.first + j);
    F p = exponential(load(s + j) - set1(now));
    p = where_less(position, set1i(lo), zero(), p);
    p = where_less(position, set1i(hi), p, zero());
    store(s + j, p);
    total = total + p;
  }
  float back = 1.0f;
  if (*m != now) {
    float lanes[16];
    store(lanes, exponential(set1(*m - now)));
    back = *m == -kInfinity ? 0.0f : lanes[0];
  }
  *l = __builtin_fmaf(*l, back, sum(total));
  *m = now;
  return back;
}

template <bool HALF, int ROWS, int VECTORS, bool AHEAD>
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
    for (int i = 0; i < VECTORS; ++i) value[i] = kv_load<HALF>(page.v, j * page.dp + at + i * 16);
    for (int r = 0; r < ROWS; ++r) {
      const F a = set1(p[r * kPage + j]);
      for (int i = 0; i < VECTORS; ++i) acc[r][i] = fma(a, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i) store(o + r * page.dp + at + i * 16, acc[r][i]);
}

template <bool HALF, int ROWS, bool AHEAD>
static void page_rows(PageView page, const AttendArgs* a, int64_t row, float* s) {
  const int32_t *lo = a->lo + row, *hi = a->hi + row;
  int32_t least = lo[0], most = hi[0];
  for (int r = 1; r < ROWS; ++r) {
    least = lo[r] < least ? lo[r] : least;
    most = hi[r] > most ? hi[r] : most;
  }
  const int32_t first = (int32_t)page.first;
  if (least - first > page.begin) page.begin = least - first;
  if (most - first < page.end) page.end = most - first;
  if (page.begin >= page.end) return;
  score_rows<HALF, ROWS, AHEAD>(page, a->q + row, lo, hi, a->scale, a->softcap, s);
  float back[ROWS];
  for (int r = 0; r < ROWS; ++r) back[r] = soften_row(page, lo[r], hi[r], s + r * kPage, a->m + row + r, a->l + row + r);
  float* o = a->o + row * page.dp;
  constexpr int vectors = kKeyVectors >= 4 ? 4 : 1;
  int64_t at = 0;
  for (; at + 16 * vectors <= page.dp; at += 16 * vectors) mix_columns<HALF, ROWS, vectors, AHEAD>(page, at, s, back, o);
  for (; at < page.dp; at += 16) mix_columns<HALF, ROWS, 1, AHEAD>(page, at, s, back, o);
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

static void attend(const AttendArgs* a) {
  const int64_t d = a->shape.head_dim, dp = a->shape.padded_dim;
  const size_t per_head = page_head_elements(&a->shape);
  const size_t element = a->shape.half ? 2 : 4;
  float* wide = a->scratch;
  float* s = a->scratch + per_head;
  for (int64_t i = a->key_begin / kPage; i * kPage < a->key_end; ++i) {
    PageView page;
    page.d = d;
    page.dp = dp;
    page.first = i * kPage;
    page.begin = (int32_t)(a->key_begin > page.first ? a->key_begin - page.first : 0);
    page.end = (int32_t)(a->key_end - page.first < kPage ? a->key_end - page.first : kPage);
    page.k = (const char*)a->pages[i] + (size_t)a->kv_head * per_head * element;
    page.v = (const char*)page.k + (size_t)(kPage * d) * element;
    const bool more = (i + 1) * kPage < a->fetch_end;
    page.next = more ? (const char*)a->pages[i + 1] + (size_t)a->kv_head * per_head * element : nullptr;
    if (a->shape.half && a->rows > 8) {
      for (size_t e = 0; e < per_head; e += 16) store(wide + e, load_f16((const uint16_t*)page.k + e));
      page.k = wide;
      page.v = wide + kPage * d;
      page.next = nullptr;
      page_all<false>(page, a, s);
    } else if (a->shape.half) {
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

static void attend_finish(const float* l, const float* o, int64_t rows, int64_t d, int64_t dp, float* const* out) {
  for (int64_t r = 0; r < rows; ++r, o += dp) {
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
