// Decoding with BMI2 shifts, joining 64 weights at a time.
#include <immintrin.h>

#include "../dfloat11_kernel.h"

namespace headway::dfloat11 {
namespace {

void join(const uint8_t* symbols, const uint8_t* sign_mantissa, int64_t n, uint16_t* out) {
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // unpacking works within 128 bits
  for (int64_t i = 0; i < n; i += 64) {
    const __m512i e = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(symbols + i));
    const __m512i s = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(sign_mantissa + i));
    const __m512i high = _mm512_ternarylogic_epi64(sign, s, e, 0xca);  // sign ? s : e
    const __m512i low = _mm512_ternarylogic_epi64(sign, e, s, 0xca);
    const __m512i a = _mm512_unpacklo_epi8(low, high), b = _mm512_unpackhi_epi8(low, high);
    _mm512_storeu_si512(out + i, a);
    _mm512_storeu_si512(out + i + 32, b);
  }
}

}  // namespace

const Level level_avx512 = {"avx512", decode, join};

}  // namespace headway::dfloat11
