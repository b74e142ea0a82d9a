// Decoding of exponent codes, the same source for every level. Included after `join` is defined in the level's file.
#pragma once
#include "dfloat11.h"

// GCC joins the chains' lengths into vectors where it can, which costs more than it saves: a tenth with AVX-512.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-tree-slp-vectorize")
#endif

namespace headway::dfloat11 {
namespace {

// One step: a load, kLookUps look-ups. Whether any bit was taken last; if not, a long code is next.
template <int N>
static inline __attribute__((always_inline)) void steps(const Tables* t, const uint8_t* code, uint64_t* bit,
                                                        uint8_t** out, int64_t count) {
  for (; count > 0; --count) {
    uint64_t window[N], last[N];
    for (int i = 0; i < N; ++i) window[i] = window_at(code, bit[i]) | 1;  // the lowest bit tells how far it moved
#pragma GCC unroll 8
    for (int k = 0; k < kLookUps; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const uint64_t e = t->entry[window[i] >> (64 - kIndexBits)];
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        __builtin_memcpy(out[i], &e, 8);
#else
        for (int s = 0; s < kMostSymbols; ++s) out[i][s] = (uint8_t)(e >> (8 * s));
#endif
        out[i] += e >> 56;
        window[i] <<= (e >> 48) & 63;
        last[i] = e;
      }
    uint64_t least = ~(uint64_t)0;
    for (int i = 0; i < N; ++i) {
      bit[i] += (uint64_t)__builtin_ctzll(window[i]);
      least = last[i] < least ? last[i] : least;
    }
    if (__builtin_expect(least == 0, 0))
      for (int i = 0; i < N; ++i)
        if (last[i] == 0) {
          uint8_t symbol = 0;
          bit[i] += (uint64_t)one_code(t, window_at(code, bit[i]), &symbol);
          *out[i]++ = symbol;
        }
  }
}

// Symbols that a step may yield, and those that must follow it so that its loads stay within the code.
constexpr int64_t kStepSymbols = kLookUps * kMostSymbols + 1;

template <int N>
static inline __attribute__((always_inline)) void together(const Tables* t, const uint8_t* code, Chain* c) {
  uint64_t bit[N];
  uint8_t *out[N], *end[N];
  for (int i = 0; i < N; ++i) {
    bit[i] = c[i].bit;
    out[i] = c[i].out;
    end[i] = out[i] + c[i].left;
  }
  for (;;) {
    int64_t least = end[0] - out[0];
    for (int i = 1; i < N; ++i) least = end[i] - out[i] < least ? end[i] - out[i] : least;
    const int64_t count = least / kStepSymbols;
    if (count == 0) break;
    steps<N>(t, code, bit, out, count);
  }
  for (int i = 0; i < N; ++i) {
    c[i].bit = bit[i];
    c[i].out = out[i];
    c[i].left = end[i] - out[i];
  }
}

static void finish(const Tables* t, const uint8_t* code, Chain* c) {
  together<1>(t, code, c);
  for (; c->left > 0; --c->left) {
    const uint64_t window = window_at(code, c->bit);
    const uint64_t e = t->entry[window >> (64 - kIndexBits)];
    uint8_t symbol = (uint8_t)e;
    c->bit += e ? t->length[symbol] : (uint64_t)one_code(t, window, &symbol);
    *c->out++ = symbol;
  }
}

static void decode(const Tables* t, const uint8_t* code, Chain* chains, int n) {
  if (n >= 4) together<4>(t, code, chains);
  else if (n == 3) together<3>(t, code, chains);
  else if (n == 2) together<2>(t, code, chains);
  for (int i = 0; i < n; ++i) finish(t, code, chains + i);
}

}  // namespace
}  // namespace headway::dfloat11

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
