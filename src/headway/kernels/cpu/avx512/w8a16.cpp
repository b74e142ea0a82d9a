#include "simd.h"

namespace headway {
namespace {

constexpr int kPairRows = 12;  // activation rows one register block takes

// Sums of ROWS activation rows, `n` columns, a multiple of 4.
template <int ROWS> HEADWAY_INLINE void sum_pairs(I* sums, const int16_t* w, const int16_t* x, int64_t ldx, int64_t n) {
  for (int r = 0; r < ROWS; ++r) sums[r] = set1i(0);
  for (; n > 0; n -= 2, w += 32, x += 2) {
    const I line = load_i((const int32_t*)w);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)  // the intrinsic would broadcast with an instruction of its own
      __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sums[r].v) : "v"(line.v), "m"(*(const Quad*)(x + r * ldx)));
  }
}
HEADWAY_INLINE void store_i16(int16_t* p, I x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(x.v)); }
// A line of 8-bit codes, byte 4 r + c, to two lines of pairs.
HEADWAY_INLINE void widen_pairs(const uint8_t* line, int zero, int16_t* to) {
  const __m512i codes = _mm512_loadu_si512(line), less = _mm512_set1_epi16((short)zero);
  const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  const __m512i second =
      _mm512_broadcast_i32x4(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
  _mm512_storeu_si512(to, _mm512_sub_epi16(_mm512_shuffle_epi8(codes, first), less));
  _mm512_storeu_si512(to + 32, _mm512_sub_epi16(_mm512_shuffle_epi8(codes, second), less));
}

}  // namespace
}  // namespace headway

#include "../w8a16_kernel.h"

HEADWAY_W8A16(w8a16_avx512)
