// Decoding with BMI2 shifts, joining 32 weights at a time.
#include <immintrin.h>

#include "../dfloat11_kernel.h"

namespace headway::dfloat11 {
namespace {

void join(const uint8_t* symbols, const uint8_t* sign_mantissa, int64_t n, uint16_t* out) {
  const __m256i sign = _mm256_set1_epi8((char)0x80);
  for (int64_t i = 0; i < n; i += 32) {  // quarters 0 2 1 3, as unpacking works within 128 bits
    const __m256i e = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)(symbols + i)), 0xd8);
    const __m256i s = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)(sign_mantissa + i)), 0xd8);
    const __m256i high = _mm256_or_si256(_mm256_and_si256(sign, s), _mm256_andnot_si256(sign, e));
    const __m256i low = _mm256_or_si256(_mm256_and_si256(sign, e), _mm256_andnot_si256(sign, s));
    _mm256_storeu_si256((__m256i*)(out + i), _mm256_unpacklo_epi8(low, high));
    _mm256_storeu_si256((__m256i*)(out + i + 16), _mm256_unpackhi_epi8(low, high));
  }
}

}  // namespace

const Level level_avx2 = {"avx2", decode, join};

}  // namespace headway::dfloat11
