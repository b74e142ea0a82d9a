// Bipolar kernels for AVX2: counting by a nibble table in bytes, 8 operations per 256 bits and 3 per plane, chunk and
// activation plane to weight and widen.
#include "simd.h"

namespace headway::bipolar {
namespace {
constexpr int64_t kChunk = 8;  // counts are added in 16 bits: 8 blocks x 16 x 255 < 2^15
}
}  // namespace headway::bipolar

#include "../bipolar_kernel.h"
#include "../bipolar_quantise.h"
#include "../bipolar_recover.h"

namespace headway::bipolar {
namespace {

HEADWAY_INLINE __m256i bytes_counted(__m256i v) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2,
                                         3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                         _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
}

template <int M, int COLS>
HEADWAY_INLINE void half_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride,
                               __m256i* sum) {
  const __m256i one = _mm256_set1_epi16(1);
  for (int c = 0; c < COLS; ++c) sum[c] = _mm256_setzero_si256();
  for (int i = bits - 1; i >= 0; --i) {
    __m256i words[COLS];
    for (int c = 0; c < COLS; ++c) words[c] = _mm256_setzero_si256();
    for (int j = 0; j < M; ++j) {
      __m256i bytes[COLS];
      for (int c = 0; c < COLS; ++c) bytes[c] = _mm256_setzero_si256();
      for (int64_t b = 0; b < blocks; ++b) {
        const __m256i line = _mm256_loadu_si256((const __m256i*)(w + (b * bits + i) * 64));
        for (int c = 0; c < COLS; ++c) {
          const __m256i word = _mm256_set1_epi32((int)x[b * stride + c * M + j]);
          bytes[c] = _mm256_add_epi8(bytes[c], bytes_counted(_mm256_xor_si256(line, word)));
        }
      }
      const __m256i by = _mm256_set1_epi8((char)(1 << j));
      for (int c = 0; c < COLS; ++c) words[c] = _mm256_add_epi16(words[c], _mm256_maddubs_epi16(by, bytes[c]));
    }
    for (int c = 0; c < COLS; ++c)
      sum[c] = _mm256_add_epi32(_mm256_slli_epi32(sum[c], 1), _mm256_madd_epi16(words[c], one));
  }
}

template <int M, int COLS>
HEADWAY_INLINE void count_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride, I* acc) {
  __m256i sum[COLS];
  for (int64_t b = 0; b < blocks * bits; ++b) _mm_prefetch((const char*)w + b * 64 + kAhead, _MM_HINT_T0);
  half_chunk<M, COLS>(w, bits, blocks, x, stride, sum);
  for (int c = 0; c < COLS; ++c) acc[c].a = _mm256_add_epi32(acc[c].a, sum[c]);
  half_chunk<M, COLS>(w + 32, bits, blocks, x, stride, sum);
  for (int c = 0; c < COLS; ++c) acc[c].b = _mm256_add_epi32(acc[c].b, sum[c]);
}

int64_t roof(int64_t rounds) {
  __m256i x = _mm256_set1_epi32(0x5a5a5a5a), y = _mm256_set1_epi32(0x12345678);
  __m256i s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x, s6 = x, s7 = x;
#define HEADWAY_STEP(s)                                                \
  __asm__ volatile("" : "+x"(x));                                      \
  s = _mm256_add_epi8(s, bytes_counted(_mm256_xor_si256(x, y)));       \
  __asm__ volatile("" : "+x"(s));
  for (int64_t round = 0; round < rounds; ++round) {
    HEADWAY_STEP(s0) HEADWAY_STEP(s1) HEADWAY_STEP(s2) HEADWAY_STEP(s3)
    HEADWAY_STEP(s4) HEADWAY_STEP(s5) HEADWAY_STEP(s6) HEADWAY_STEP(s7)
  }
#undef HEADWAY_STEP
  return rounds * 8 * 256;
}

}  // namespace
}  // namespace headway::bipolar

HEADWAY_BIPOLAR(avx2_kernels, "avx2")
