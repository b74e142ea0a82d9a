// What attention over pages of any form shares: a page as it is seen, its masked scores, their softmax.
#pragma once
#include "ops_kernel.h"

namespace headway {
namespace {

constexpr int kPage = headway::kPageTokens;

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

}  // namespace
}  // namespace headway
