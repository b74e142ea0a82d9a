// Probe kernels of AVX2 machines (x86-64-v3), and the VEX form of VNNI where the CPU has it.
#include <immintrin.h>

#include "../probe.h"

namespace headway::probe {
namespace {

#define HOLD(value) asm volatile("" : "+x"(value))
// Twelve named accumulators: an array of them would be spilled to the stack.
#define EACH(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

// `body(acc)` is one operation on accumulator `acc`; x and y are its other operands. HOLD keeps the compiler from
// computing a shared product once.
#define DEFINE(name, attribute, type, x0, y0, body) \
  attribute void name(int64_t rounds) {             \
    type x = x0, y = y0;                            \
    type a0 = y, a1 = y, a2 = y, a3 = y, a4 = y, a5 = y, a6 = y, a7 = y, a8 = y, a9 = y, a10 = y, a11 = y; \
    for (int64_t round = 0; round < rounds; ++round) { EACH(body) }                                        \
    EACH(KEEP)                                                                                             \
  }
#define KEEP(i) HOLD(a##i);

#define FMA(i) HOLD(x); a##i = _mm256_fmadd_ps(x, y, a##i);
DEFINE(fma256, , __m256, _mm256_set1_ps(1.f), _mm256_set1_ps(1e-9f), FMA)

#define MADD(i) HOLD(x); a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
void maddubs256(int64_t rounds) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(-5);
  __m256i a0 = y, a1 = y, a2 = y, a3 = y, a4 = y, a5 = y, a6 = y, a7 = y, a8 = y, a9 = y, a10 = y, a11 = y;
  for (int64_t round = 0; round < rounds; ++round) { EACH(MADD) }
  EACH(KEEP)
}

#define SHUFFLE(i) a##i = _mm256_shuffle_epi8(a##i, x); HOLD(a##i);
DEFINE(shuffle256, , __m256i, _mm256_set1_epi32(0x00010203), _mm256_set1_epi8(7), SHUFFLE)

#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAVE_VEX_VNNI 1
#define VNNI(i) HOLD(x); a##i = _mm256_dpbusd_avx_epi32(a##i, x, y);
DEFINE(vnni256, __attribute__((target("avxvnni"))), __m256i, _mm256_set1_epi8(3), _mm256_set1_epi8(-5), VNNI)
#endif

uint64_t read(const void* data, size_t bytes) {
  const __m256i* at = static_cast<const __m256i*>(data);
  const __m256i* end = at + bytes / sizeof(__m256i);
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (; at != end; at += 8) {
    a = _mm256_or_si256(a, _mm256_load_si256(at));
    b = _mm256_or_si256(b, _mm256_load_si256(at + 1));
    c = _mm256_or_si256(c, _mm256_load_si256(at + 2));
    d = _mm256_or_si256(d, _mm256_load_si256(at + 3));
    a = _mm256_or_si256(a, _mm256_load_si256(at + 4));
    b = _mm256_or_si256(b, _mm256_load_si256(at + 5));
    c = _mm256_or_si256(c, _mm256_load_si256(at + 6));
    d = _mm256_or_si256(d, _mm256_load_si256(at + 7));
  }
  a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0) | _mm256_extract_epi64(a, 2));
}

const Unit kUnits[] = {
    {"fma256", "f32", "", 12 * 8 * 2, fma256},
    {"maddubs256", "int8", "", 12 * 32 * 2, maddubs256},
#ifdef HAVE_VEX_VNNI
    {"vnni256", "int8", "avxvnni", 12 * 32 * 2, vnni256},
#endif
    {"shuffle256", "byte", "", 12 * 32, shuffle256},
};
const Table kTable = {"avx2", "avx2", kUnits, sizeof(kUnits) / sizeof(kUnits[0]), read};

}  // namespace

const Table& avx2_table() { return kTable; }

}  // namespace headway::probe
