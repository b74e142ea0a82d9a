// The kernels of quantise.h. Included after a level's simd.h.
//
// Nearly all time is add_products: per panel and pass, in^2 multiply-adds of `rows` lanes, with one broadcast of H (or
// U) and V loads of the panel per V products. H streams from L2 or L3 once per panel.
#pragma once
#include "quantise.h"

namespace headway {
namespace {

#if defined(__AVX512F__)
constexpr int kVectors = 2;
constexpr int kColumns = 8;
#else
constexpr int kVectors = 1;
constexpr int kColumns = 4;
#endif
constexpr int kRows = 16 * kVectors;

struct P {
  F v[kVectors];
};
HEADWAY_INLINE P get(const float* p) {
  P a;
  for (int i = 0; i < kVectors; ++i) a.v[i] = load(p + 16 * i);
  return a;
}
HEADWAY_INLINE void put(float* p, const P& a) {
  for (int i = 0; i < kVectors; ++i) store(p + 16 * i, a.v[i]);
}

// to[c] += sum over j < m of factor[j * ld + c] * by[j], for c < N; sums run in the order of j.
template <int N>
HEADWAY_INLINE void add_block(float* to, const float* factor, int64_t ld, const float* by, int64_t m) {
  F acc[N][kVectors];
  for (int c = 0; c < N; ++c)
    for (int v = 0; v < kVectors; ++v) acc[c][v] = load(to + c * kRows + 16 * v);
  for (int64_t j = 0; j < m; ++j) {
    F x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = load(by + j * kRows + 16 * v);
    for (int c = 0; c < N; ++c) {
      const F f = set1(factor[j * ld + c]);
      for (int v = 0; v < kVectors; ++v) acc[c][v] = fma(f, x[v], acc[c][v]);
    }
  }
  for (int c = 0; c < N; ++c)
    for (int v = 0; v < kVectors; ++v) store(to + c * kRows + 16 * v, acc[c][v]);
}

static void add_products(float* to, const float* factor, int64_t ld, const float* by, int64_t m, int64_t columns) {
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) add_block<kColumns>(to + c * kRows, factor + c, ld, by, m);
  for (; c < columns; ++c) add_block<1>(to + c * kRows, factor + c, ld, by, m);
}

HEADWAY_INLINE F clamp_round(F x, F top) { return to_float(to_int(min(max(x, zero()), top))); }
HEADWAY_INLINE F positive_or(F x, F other) { return where_less(set1i(0), bits(x), x, other); }
// a < b ? x : y, for a and b that are not negative.
HEADWAY_INLINE F where_smaller(F a, F b, F x, F y) { return where_less(bits(a), bits(b), x, y); }

struct Moments {
  F q, qq, qw;  // sums of h q, h q^2, h q (w - mean)
};

// Weighted least squares of w over codes; keeps (s, m) where the codes are all alike or the slope is not positive.
HEADWAY_INLINE void least_squares(const Moments& at, F inverse_weight, F mean, F& s, F& m) {
  const F mq = at.q * inverse_weight;
  const F variance = at.qq - at.q * mq;
  const F slope = at.qw / variance;
  const F floor = at.qq * set1(1e-5f);
  const F s2 = where_less(bits(floor), bits(variance), positive_or(slope, s), s);
  m = mean - s2 * mq;
  s = s2;
}

// One vector of rows of one group: columns [0, n).
HEADWAY_INLINE void fit_group(const FitArgs* a, const float* w, const float* h, int64_t n, float* scale, float* minimum) {
  F low = load(w), high = low, weighted = zero();
  float weight = 0;
  for (int64_t i = 0; i < n; ++i) {
    const F x = load(w + i * kRows);
    low = min(low, x);
    high = max(high, x);
    weighted = fma(set1(h[i]), x, weighted);
    weight += h[i];
  }
  const F inverse_weight = set1(1.0f / weight);
  const F mean = weighted * inverse_weight;
  const F top = set1((float)a->levels);
  const F tiny = set1(1e-30f);
  const F range = high - low;
  F best = set1(3e38f), best_s = max(range / top, tiny), best_m = low;

  const auto codes_of = [&](F s, F m, Moments& sums, F& error) {
    const F inverse = set1(1.0f) / s;
    const F offset = m - mean;
    sums = {zero(), zero(), zero()};
    error = zero();
    for (int64_t i = 0; i < n; ++i) {
      const F x = load(w + i * kRows) - mean;
      const F weight_i = set1(h[i]);
      const F q = clamp_round((x - offset) * inverse, top);
      const F hq = weight_i * q;
      const F lost = x - fma(q, s, offset);
      sums.q = sums.q + hq;
      sums.qq = fma(hq, q, sums.qq);
      sums.qw = fma(hq, x, sums.qw);
      error = fma(weight_i * lost, lost, error);
    }
  };
  Moments sums;
  F error;
  for (int t = 0; t < a->candidates; ++t) {
    const float share = a->candidates > 1 ? 1.0f - (1.0f - a->narrowest) * (float)t / (float)(a->candidates - 1) : 1.0f;
    F s = max(range * set1(share / (float)a->levels), tiny);
    F m = mean + (low - mean) * set1(share);
    for (int pass = 0; pass < 2; ++pass) {
      codes_of(s, m, sums, error);
      best_s = where_smaller(error, best, s, best_s);
      best_m = where_smaller(error, best, m, best_m);
      best = min(best, error);
      if (pass == 0) least_squares(sums, inverse_weight, mean, s, m);
    }
  }
  F s = best_s, m = best_m;
  for (int pass = 0; pass < 4; ++pass) {  // settle: codes and fit in turn
    codes_of(s, m, sums, error);
    best_s = where_smaller(error, best, s, best_s);
    best_m = where_smaller(error, best, m, best_m);
    best = min(best, error);
    least_squares(sums, inverse_weight, mean, s, m);
  }
  store(scale, best_s);
  store(minimum, best_m);
}

static void quantise_fit(const FitArgs* a) {
  for (int64_t start = 0, k = 0; start < a->in; start += a->group, ++k) {
    const int64_t n = a->in - start < a->group ? a->in - start : a->group;
    for (int v = 0; v < kVectors; ++v)
      fit_group(a, a->w + start * kRows + 16 * v, a->h + start, n, a->scale + k * kRows + 16 * v,
                a->minimum + k * kRows + 16 * v);
  }
}

HEADWAY_INLINE void store_code(uint8_t* to, F q) {
  // int8 stores keep the low byte, which is the code.
  const F signed_q = where_less(set1i(127), to_int(q), q - set1(256.0f), q);
  store_i8((int8_t*)to, to_int(signed_q));
}

// Columns of one block, rows of the block itself: plain elimination. Leaves v below the diagonal, pivots in `d`.
static void factor_corner(const FactorArgs* a, int64_t begin, int64_t end, float* d) {
  const auto at = [&](int64_t r, int64_t c) -> float& { return a->panels[(c / kRows * a->n + r) * kRows + c % kRows]; };
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = begin; c <= r; ++c) {
      float x = at(r, c);
      for (int64_t k = begin; k < c; ++k) x -= at(r, k) * d[k - begin] * at(c, k);
      if (c < r) x /= d[c - begin];
      else d[c - begin] = x > a->least ? x : a->least;
      at(r, c) = x;
    }
  }
}

static void quantise_factor(const FactorArgs* a) {
  const int64_t n = a->n;
  float* lost = a->scratch;                       // [kQuantiseBlock][n]: minus v d of the block's columns
  float* across = lost + kQuantiseBlock * n;      // [kQuantiseBlock][rows]: v of the block's columns, transposed
  float* corner = across + kQuantiseBlock * kRows;  // [k][c]: v of the block itself, transposed
  constexpr int kParts = kQuantiseBlock / 16;
  for (int64_t begin = 0; begin < n; begin += kQuantiseBlock) {
    const int64_t end = begin + kQuantiseBlock < n ? begin + kQuantiseBlock : n, m = end - begin;
    float d[kQuantiseBlock], inverse[kQuantiseBlock];
    factor_corner(a, begin, end, d);
    if (end == n) return;
    const auto row = [&](int64_t r, int part) {  // 16 columns of the block
      const int64_t c = begin + 16 * part;
      return a->panels + (c / kRows * n + r) * kRows + c % kRows;
    };
    for (int64_t k = 0; k < kQuantiseBlock; ++k) {
      inverse[k] = 1.0f / d[k];
      for (int64_t c = 0; c < kQuantiseBlock; ++c) corner[k * kQuantiseBlock + c] = c > k ? row(begin + c, (int)k / 16)[k % 16] : 0.0f;
    }
    for (int64_t r = end; r < n; ++r) {
      alignas(64) float x[kQuantiseBlock];
      F v[kParts];
      for (int i = 0; i < kParts; ++i) v[i] = load(row(r, i));
      for (int k = 0; k < kQuantiseBlock; ++k) {
        store(x + k / 16 * 16, v[k / 16]);
        const F by = set1(-x[k]);
        for (int i = k / 16; i < kParts; ++i) v[i] = fma(by, load(corner + k * kQuantiseBlock + 16 * i), v[i]);
      }
      for (int i = 0; i < kParts; ++i) {
        store(x + 16 * i, v[i]);
        store(row(r, i), v[i] * load(inverse + 16 * i));
      }
      for (int64_t k = 0; k < m; ++k) lost[k * n + r - end] = -x[k];
    }
    for (int64_t c = end; c < n; c += kRows) {
      const int64_t lanes = n - c < kRows ? n - c : kRows;
      for (int64_t k = 0; k < m; ++k)
        for (int64_t l = 0; l < kRows; ++l)
          across[k * kRows + l] = l < lanes ? row(c + l, (int)k / 16)[k % 16] : 0.0f;
      add_products(a->panels + (c / kRows * n + c) * kRows, lost + (c - end), n, across, m, n - c);
    }
  }
}

static void quantise_sweep(const SweepArgs* a) {
  const F top = set1((float)a->levels);
  float* owed = a->scratch;  // [in][rows]: sum over the columns done of v e
  float* lost = owed + a->in * kRows;
  for (int64_t i = 0; i < a->in * kRows; i += 16) store(owed + i, zero());
  for (int64_t begin = 0; begin < a->in; begin += kQuantiseBlock) {
    const int64_t end = begin + kQuantiseBlock < a->in ? begin + kQuantiseBlock : a->in;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t g = (int64_t)a->group[j] * kRows;
      float* own = lost + (j - begin) * kRows;
      for (int v = 0; v < kVectors; ++v) {
        const F w = load(a->w + j * kRows + 16 * v), x = w + load(owed + j * kRows + 16 * v);
        F q, value;
        if (a->grid) {
          const float* values = a->grid + g * (a->levels + 1) + 16 * v;
          q = zero();
          value = load(values);
          F distance = max(x - value, value - x);
          for (int i = 1; i <= a->levels; ++i) {
            const F other = load(values + (int64_t)i * kRows);
            const F far = max(x - other, other - x);
            q = where_smaller(far, distance, set1((float)i), q);
            value = where_smaller(far, distance, other, value);
            distance = min(far, distance);
          }
        } else {
          const F s = load(a->scale + g + 16 * v), m = load(a->minimum + g + 16 * v);
          q = clamp_round((x - m) / s, top);
          value = q * s + m;
        }
        store_code(a->codes + j * kRows + 16 * v, q);
        store(own + 16 * v, w - value);
      }
      add_products(owed + (j + 1) * kRows, a->v + j * a->in + j + 1, a->in, own, 1, end - j - 1);
    }
    add_products(owed + end * kRows, a->v + begin * a->in + end, a->in, lost, end - begin, a->in - end);
  }
}

struct RefineState {
  const RefineArgs* a;
  float* slope;     // [in][rows]: H (w - value); also the products of the fit
  float* error;     // [in][rows]
  float* moved;     // [kQuantiseBlock][rows]
  float* triangle;  // [unknowns (unknowns + 1) / 2][rows]
  float* right;     // [unknowns][rows]
  float* row;       // [unknowns][rows]
  float* pivot;     // [unknowns][rows]
};

HEADWAY_INLINE F code(const RefineArgs* a, int64_t j, int v) { return to_float(load_u8(a->codes + j * kRows + 16 * v)); }
HEADWAY_INLINE int64_t triangle_at(int64_t u, int64_t v) { return (u * (u + 1) / 2 + v) * kRows; }

// slope := H (w - value), from scratch.
static void refine_slope(const RefineState& t) {
  const RefineArgs* a = t.a;
  for (int64_t j = 0; j < a->in; ++j)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t g = j / a->group * kRows + 16 * v, at = j * kRows + 16 * v;
      store(t.error + at, load(a->w + at) - (code(a, j, v) * load(a->scale + g) + load(a->minimum + g)));
      store(t.slope + at, zero());
    }
  for (int64_t begin = 0; begin < a->in; begin += kQuantiseBlock) {
    const int64_t m = a->in - begin < kQuantiseBlock ? a->in - begin : kQuantiseBlock;
    add_products(t.slope, a->h + begin * a->in, a->in, t.error + begin * kRows, m, a->in);
  }
}

HEADWAY_INLINE void accumulate(float* to, F x) { store(to, load(to) + x); }

// Normal equations of the change of (scale, minimum) of all groups; basis: code - centre and 1 on each group.
static void refine_equations(const RefineState& t, float centre) {
  const RefineArgs* a = t.a;
  const int64_t unknowns = 2 * a->groups;
  const F c0 = set1(centre);
  for (int64_t i = 0; i < unknowns * (unknowns + 1) / 2 * kRows; i += 16) store(t.triangle + i, zero());
  for (int64_t i = 0; i < unknowns * kRows; i += 16) store(t.right + i, zero());
  for (int64_t j = 0; j < a->in; ++j)
    for (int v = 0; v < kVectors; ++v) {
      const F slope = load(t.slope + j * kRows + 16 * v);
      float* right = t.right + 2 * (j / a->group) * kRows + 16 * v;
      accumulate(right, (code(a, j, v) - c0) * slope);
      accumulate(right + kRows, slope);
    }
  for (int64_t l = 0; l < a->groups; ++l) {
    const int64_t begin = l * a->group, end = begin + a->group < a->in ? begin + a->group : a->in;
    for (int64_t j = begin; j < end; ++j)
      for (int v = 0; v < kVectors; ++v) store(t.error + j * kRows + 16 * v, code(a, j, v) - c0);
    float* products = t.slope;  // no longer needed: H (code - centre) over the columns from this group on
    for (int64_t i = begin * kRows; i < a->in * kRows; i += 16) store(products + i, zero());
    for (int64_t b = begin; b < end; b += kQuantiseBlock) {
      const int64_t m = end - b < kQuantiseBlock ? end - b : kQuantiseBlock;
      add_products(products + begin * kRows, a->h + b * a->in + begin, a->in, t.error + b * kRows, m, a->in - begin);
    }
    for (int64_t j = begin; j < a->in; ++j) {
      const int64_t k = j / a->group;
      const F ones = set1(a->h_sums[j * a->groups + l]);
      for (int v = 0; v < kVectors; ++v) {
        const F q = code(a, j, v) - c0, product = load(products + j * kRows + 16 * v);
        accumulate(t.triangle + triangle_at(2 * k, 2 * l) + 16 * v, q * product);
        accumulate(t.triangle + triangle_at(2 * k + 1, 2 * l) + 16 * v, product);
        if (k != l) accumulate(t.triangle + triangle_at(2 * k, 2 * l + 1) + 16 * v, q * ones);
        accumulate(t.triangle + triangle_at(2 * k + 1, 2 * l + 1) + 16 * v, ones);
      }
    }
  }
}

// The equations of the scales alone: what moves the middle of a group's grid is taken out.
static void refine_centred(const RefineState& t) {
  for (int64_t u = 0; u < 2 * t.a->groups; ++u)
    for (int v = 0; v < kVectors; ++v) {
      if (u % 2) store(t.right + u * kRows + 16 * v, zero());
      for (int64_t w = 0; w <= u; ++w)
        if (u % 2 || w % 2) store(t.triangle + triangle_at(u, w) + 16 * v, u == w ? set1(1.0f) : zero());
    }
}

// Solves the equations by L D L^T in place; the answer is in `right`.
static void refine_solve(const RefineState& t) {
  const int64_t unknowns = 2 * t.a->groups;
  for (int64_t u = 0; u < unknowns; ++u) {
    float* row = t.triangle + triangle_at(u, 0);
    for (int v = 0; v < kVectors; ++v) {
      float* own = row + u * kRows + 16 * v;
      store(own, fma(load(own), set1(1e-3f), load(own)) + set1(1e-30f));  // damped: float32 suffices
    }
    for (int64_t w = 0; w < u; ++w) {
      const float* other = t.triangle + triangle_at(w, 0);
      P sum = get(row + w * kRows);
      for (int64_t k = 0; k < w; ++k)
        for (int v = 0; v < kVectors; ++v)
          sum.v[v] = sum.v[v] - load(t.row + k * kRows + 16 * v) * load(other + k * kRows + 16 * v);
      put(t.row + w * kRows, sum);
    }
    for (int v = 0; v < kVectors; ++v) {
      F own = load(row + u * kRows + 16 * v);
      const F least = own * set1(1e-6f);
      for (int64_t w = 0; w < u; ++w) {
        const F product = load(t.row + w * kRows + 16 * v);
        const F lower = product / load(t.pivot + w * kRows + 16 * v);
        store(row + w * kRows + 16 * v, lower);
        own = own - product * lower;
      }
      store(t.pivot + u * kRows + 16 * v, max(own, least));
    }
  }
  for (int64_t u = 0; u < unknowns; ++u)
    for (int v = 0; v < kVectors; ++v) {
      F x = load(t.right + u * kRows + 16 * v);
      for (int64_t w = 0; w < u; ++w)
        x = x - load(t.triangle + triangle_at(u, w) + 16 * v) * load(t.right + w * kRows + 16 * v);
      store(t.right + u * kRows + 16 * v, x);
    }
  for (int64_t u = unknowns; u-- > 0;)
    for (int v = 0; v < kVectors; ++v) {
      F x = load(t.right + u * kRows + 16 * v) / load(t.pivot + u * kRows + 16 * v);
      for (int64_t w = u + 1; w < unknowns; ++w)
        x = x - load(t.triangle + triangle_at(w, u) + 16 * v) * load(t.right + w * kRows + 16 * v);
      store(t.right + u * kRows + 16 * v, x);
    }
}

HEADWAY_INLINE F rounded(F x, int half) {
  if (!half) return x;
  uint16_t bits16[16];
  store_f16(bits16, x);
  return load_f16(bits16);
}

static void refine_fit(const RefineState& t) {
  const RefineArgs* a = t.a;
  const float centre = (float)a->levels * 0.5f;
  refine_equations(t, centre);
  if (a->centred) refine_centred(t);
  refine_solve(t);
  for (int64_t k = 0; k < a->groups; ++k)
    for (int v = 0; v < kVectors; ++v) {
      float *s = a->scale + k * kRows + 16 * v, *m = a->minimum + k * kRows + 16 * v;
      const F by = load(t.right + 2 * k * kRows + 16 * v), shift = load(t.right + (2 * k + 1) * kRows + 16 * v);
      const F old = load(s), wide = rounded(old + by, a->half);
      const F low = a->centred ? zero() - set1(centre) * wide
                               : rounded(load(m) + (shift - set1(centre) * by), a->half);
      const F least = old * set1(0.1f);  // a step this far is not to be trusted: the group stays as it is
      store(m, where_less(bits(least), bits(wide), low, load(m)));
      store(s, where_less(bits(least), bits(wide), wide, old));
    }
}

// Each code in turn to the best one given all others; `slope` is kept true.
static void refine_codes(const RefineState& t) {
  const RefineArgs* a = t.a;
  const F top = set1((float)a->levels);
  for (int64_t begin = 0; begin < a->in; begin += kQuantiseBlock) {
    const int64_t end = begin + kQuantiseBlock < a->in ? begin + kQuantiseBlock : a->in;
    F largest = zero();
    for (int64_t j = begin; j < end; ++j) {
      float* moved = t.moved + (j - begin) * kRows;
      const F step = set1(1.0f / a->h[j * a->in + j]);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t g = j / a->group * kRows + 16 * v;
        const F s = load(a->scale + g), old = code(a, j, v);
        const F q = clamp_round(old + load(t.slope + j * kRows + 16 * v) * step / s, top);
        const F by = (old - q) * s;
        store_code(a->codes + j * kRows + 16 * v, q);
        store(moved + 16 * v, by);
        largest = max(largest, max(by, zero() - by));
      }
      add_products(t.slope + begin * kRows, a->h + j * a->in + begin, a->in, moved, 1, end - begin);
    }
    if (highest(largest) == 0.0f) continue;
    const float* rows = a->h + begin * a->in;
    add_products(t.slope, rows, a->in, t.moved, end - begin, begin);
    add_products(t.slope + end * kRows, rows + end, a->in, t.moved, end - begin, a->in - end);
  }
}

static void quantise_refine(const RefineArgs* a) {
  const int64_t unknowns = 2 * a->groups;
  RefineState t;
  t.a = a;
  t.slope = a->scratch;
  t.error = t.slope + a->in * kRows;
  t.moved = t.error + a->in * kRows;
  t.triangle = t.moved + kQuantiseBlock * kRows;
  t.right = t.triangle + unknowns * (unknowns + 1) / 2 * kRows;
  t.row = t.right + unknowns * kRows;
  t.pivot = t.row + unknowns * kRows;
  for (int round = 0; round < a->rounds; ++round) {
    refine_slope(t);
    refine_fit(t);
    refine_slope(t);
    refine_codes(t);
  }
  refine_slope(t);
  refine_fit(t);
}

}  // namespace
}  // namespace headway

#define HEADWAY_QUANTISE(name)                             \
  namespace headway {                                      \
  extern const QuantiseKernels name;                       \
  const QuantiseKernels name = {kRows, quantise_fit, quantise_factor, quantise_sweep, quantise_refine}; \
  }
