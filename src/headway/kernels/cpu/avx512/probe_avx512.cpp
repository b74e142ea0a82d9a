// Probe kernels of AVX-512 machines; bf16 and VBMI only run where the CPU has them.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: its own _mm512_undefined_epi32
#endif
#include <immintrin.h>

#include "../probe.h"

namespace headway::probe {
namespace {

#define HOLD(value) asm volatile("" : "+v"(value))
// Twelve named accumulators: an array of them would be spilled to the stack.
#define EACH(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

// `body(acc)` is one operation on accumulator `acc`; x and y are its other operands. HOLD keeps the compiler from
// computing a shared product once.
#define DEFINE(name, attribute, accumulator, start, type, x0, y0, body) \
  attribute void name(int64_t rounds) {                                 \
    type x = x0, y = y0;                                                \
    accumulator s = start;                                              \
    accumulator a0 = s, a1 = s, a2 = s, a3 = s, a4 = s, a5 = s, a6 = s, a7 = s, a8 = s, a9 = s, a10 = s, a11 = s; \
    HOLD(y);                                                                                                      \
    for (int64_t round = 0; round < rounds; ++round) { EACH(body) }                                               \
    EACH(KEEP)                                                                                                    \
  }
#define KEEP(i) HOLD(a##i);

#define FMA(i) HOLD(x); a##i = _mm512_fmadd_ps(x, y, a##i);
DEFINE(fma512, , __m512, _mm512_setzero_ps(), __m512, _mm512_set1_ps(1.f), _mm512_set1_ps(1e-9f), FMA)

#define VNNI(i) HOLD(x); a##i = _mm512_dpbusd_epi32(a##i, x, y);
DEFINE(vnni512, , __m512i, _mm512_setzero_si512(), __m512i, _mm512_set1_epi8(3), _mm512_set1_epi8(-5), VNNI)

#define DOT(i) HOLD(x); a##i = _mm512_dpbf16_ps(a##i, (__m512bh)x, (__m512bh)y);
DEFINE(vdpbf16, __attribute__((target("avx512bf16"))), __m512, _mm512_setzero_ps(), __m512i,
       _mm512_set1_epi16(0x3f80), _mm512_set1_epi16(0x3000), DOT)

#define SHUFFLE(i) a##i = _mm512_shuffle_epi8(a##i, x); HOLD(a##i);
DEFINE(shuffle512, , __m512i, _mm512_set1_epi8(7), __m512i, _mm512_set1_epi32(0x00010203), x, SHUFFLE)

#define PERMUTE(i) a##i = _mm512_permutexvar_epi8(x, a##i); HOLD(a##i);
DEFINE(permute512, __attribute__((target("avx512vbmi"))), __m512i, _mm512_set1_epi8(7), __m512i,
       _mm512_set1_epi32(0x00010203), x, PERMUTE)

uint64_t read(const void* data, size_t bytes) {
  const __m512i* at = static_cast<const __m512i*>(data);
  const __m512i* end = at + bytes / sizeof(__m512i);
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (; at != end; at += 8) {
    a = _mm512_or_si512(a, _mm512_load_si512(at));
    b = _mm512_or_si512(b, _mm512_load_si512(at + 1));
    c = _mm512_or_si512(c, _mm512_load_si512(at + 2));
    d = _mm512_or_si512(d, _mm512_load_si512(at + 3));
    a = _mm512_or_si512(a, _mm512_load_si512(at + 4));
    b = _mm512_or_si512(b, _mm512_load_si512(at + 5));
    c = _mm512_or_si512(c, _mm512_load_si512(at + 6));
    d = _mm512_or_si512(d, _mm512_load_si512(at + 7));
  }
  a = _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d));
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(a));
}

const Unit kUnits[] = {
    {"fma512", "f32", "", 12 * 16 * 2, fma512},
    {"vdpbf16", "bf16", "avx512bf16", 12 * 32 * 2, vdpbf16},
    {"vnni512", "int8", "", 12 * 64 * 2, vnni512},
    {"shuffle512", "byte", "", 12 * 64, shuffle512},
    {"permute512", "byte", "avx512vbmi", 12 * 64, permute512},
};
const Table kTable = {"avx512", "avx512vnni", kUnits, sizeof(kUnits) / sizeof(kUnits[0]), read};

}  // namespace

const Table& avx512_table() { return kTable; }

}  // namespace headway::probe
