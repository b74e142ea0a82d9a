// Bipolar counting for AVX-512 with VPOPCNTDQ: 3 operations per 512 bits. The rest is avx512's.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512vpopcntdq"))), apply_to = function)
#else
#pragma GCC target("avx512vpopcntdq")
#endif
#include "simd.h"

namespace headway::bipolar {
namespace {
constexpr int64_t kChunk = 32;
}
}  // namespace headway::bipolar

#include "../bipolar_kernel.h"

namespace headway::bipolar {
namespace {

template <int M, int COLS>
HEADWAY_INLINE void count_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride, I* acc) {
  __m512i sum[COLS];
  for (int c = 0; c < COLS; ++c) sum[c] = _mm512_setzero_si512();
  for (int i = bits - 1; i >= 0; --i) {
    for (int c = 0; c < COLS; ++c) sum[c] = _mm512_slli_epi32(sum[c], 1);
    const auto step = [&](int64_t b) __attribute__((always_inline)) {
      const uint8_t* at = w + (b * bits + i) * 64;
      _mm_prefetch((const char*)at + kAhead, _MM_HINT_T0);
      const __m512i line = _mm512_loadu_si512(at);
      for (int c = 0; c < COLS; ++c)
        for (int j = 0; j < M; ++j) {
          __m512i v;  // the intrinsics would broadcast with an instruction of its own
          __asm__("vpxord %2%{1to16%}, %1, %0" : "=v"(v) : "v"(line), "m"(x[b * stride + c * M + j]));
          sum[c] = _mm512_dpbusd_epi32(sum[c], _mm512_set1_epi8((char)(1 << j)), _mm512_popcnt_epi32(v));
        }
    };
    int64_t b = 0;
    if constexpr (M <= 2)
      for (; b + 4 <= blocks; b += 4)
        for (int k = 0; k < 4; ++k) step(b + k);
    for (; b < blocks; ++b) step(b);
  }
  for (int c = 0; c < COLS; ++c) acc[c].v = _mm512_add_epi32(acc[c].v, sum[c]);
}

int64_t roof(int64_t rounds) {
  __m512i x = _mm512_set1_epi32(0x5a5a5a5a), y = _mm512_set1_epi32(0x12345678);
  const __m512i by = _mm512_set1_epi8(4);
  __m512i s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x, s6 = x, s7 = x, s8 = x, s9 = x, s10 = x, s11 = x;
#define HEADWAY_STEP(s)                                                            \
  __asm__ volatile("" : "+v"(x));                                                  \
  s = _mm512_dpbusd_epi32(s, by, _mm512_popcnt_epi32(_mm512_xor_si512(x, y)));     \
  __asm__ volatile("" : "+v"(s));
  for (int64_t round = 0; round < rounds; ++round) {
    HEADWAY_STEP(s0) HEADWAY_STEP(s1) HEADWAY_STEP(s2) HEADWAY_STEP(s3) HEADWAY_STEP(s4) HEADWAY_STEP(s5)
    HEADWAY_STEP(s6) HEADWAY_STEP(s7) HEADWAY_STEP(s8) HEADWAY_STEP(s9) HEADWAY_STEP(s10) HEADWAY_STEP(s11)
  }
#undef HEADWAY_STEP
  return rounds * 12 * 512;
}

}  // namespace

const Kernels& vpopcntdq_kernels() {
  static const Kernels& rest = avx512_kernels();
  static const Kernels kernels = {"avx512-vpopcntdq", count, rest.recover, rest.quantise, rest.turn, roof};
  return kernels;
}

}  // namespace headway::bipolar
#ifdef __clang__
#pragma clang attribute pop
#endif
