// Bipolar kernels for AVX-512 with VNNI: counting by a nibble table, 8 operations per 512 bits.
#include "simd.h"

namespace headway::bipolar {
namespace {
constexpr int64_t kChunk = 32;
}
}  // namespace headway::bipolar

#include "../bipolar_kernel.h"
#include "../bipolar_quantise.h"
#include "../bipolar_recover.h"

namespace headway::bipolar {
namespace {

HEADWAY_INLINE __m512i bytes_counted(__m512i v) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i low = _mm512_set1_epi8(15);
  return _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(v, low)),
                         _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low)));
}

template <int M, int COLS>
HEADWAY_INLINE void count_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride, I* acc) {
  __m512i sum[COLS];
  for (int c = 0; c < COLS; ++c) sum[c] = _mm512_setzero_si512();
  for (int i = bits - 1; i >= 0; --i) {
    for (int c = 0; c < COLS; ++c) sum[c] = _mm512_slli_epi32(sum[c], 1);
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* at = w + (b * bits + i) * 64;
      _mm_prefetch((const char*)at + kAhead, _MM_HINT_T0);
      const __m512i line = _mm512_loadu_si512(at);
      for (int c = 0; c < COLS; ++c)
        for (int j = 0; j < M; ++j) {
          const __m512i word = _mm512_set1_epi32((int)x[b * stride + c * M + j]);
          sum[c] = _mm512_dpbusd_epi32(sum[c], _mm512_set1_epi8((char)(1 << j)), bytes_counted(_mm512_xor_si512(line, word)));
        }
    }
  }
  for (int c = 0; c < COLS; ++c) acc[c].v = _mm512_add_epi32(acc[c].v, sum[c]);
}

int64_t roof(int64_t rounds) {
  __m512i x = _mm512_set1_epi32(0x5a5a5a5a), y = _mm512_set1_epi32(0x12345678);
  const __m512i by = _mm512_set1_epi8(4);
  __m512i sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (int64_t round = 0; round < rounds; ++round)
    for (int k = 0; k < 8; ++k) {
      __asm__ volatile("" : "+v"(x), "+v"(y));
      sum[k] = _mm512_dpbusd_epi32(sum[k], by, bytes_counted(_mm512_xor_si512(x, y)));
      __asm__ volatile("" : "+v"(sum[k]));
    }
  return rounds * 8 * 512;
}

}  // namespace
}  // namespace headway::bipolar

HEADWAY_BIPOLAR(avx512_kernels, "avx512")
