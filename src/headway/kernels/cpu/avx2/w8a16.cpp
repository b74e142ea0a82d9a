#include "simd.h"

namespace headway {
namespace {

constexpr int kPairRows = 4;  // activation rows one register block takes

// Of intrinsics the compiler makes copies from register to register, and reads weights anew, in every turn.
#define HEADWAY_PAIRS_ROW(at, x, a, b, s, t)                                      \
  "vpbroadcastd " at x ", %%ymm10\n\t"                                            \
  "vpmaddwd %%ymm10, %%ymm8, %%" s "\n\t"                                         \
  "vpmaddwd %%ymm10, %%ymm9, %%" t "\n\t"                                         \
  "vpaddd %%" s ", %" a ", %" a "\n\t"                                            \
  "vpaddd %%" t ", %" b ", %" b "\n\t"
#define HEADWAY_PAIRS(line, next, at)                                             \
  "vmovdqu " line "(%[w]), %%ymm8\n\t"                                            \
  "vmovdqu " next "(%[w]), %%ymm9\n\t"                                            \
  HEADWAY_PAIRS_ROW(at, "(%[x])", "[a0]", "[b0]", "ymm11", "ymm12")               \
  HEADWAY_PAIRS_ROW(at, "(%[x],%[ld])", "[a1]", "[b1]", "ymm13", "ymm14")         \
  HEADWAY_PAIRS_ROW(at, "(%[x],%[ld],2)", "[a2]", "[b2]", "ymm11", "ymm12")       \
  HEADWAY_PAIRS_ROW(at, "(%[x],%[ld3])", "[a3]", "[b3]", "ymm13", "ymm14")
HEADWAY_INLINE void sum_pairs_4(I* sums, const int16_t* w, const int16_t* x, int64_t ldx, int64_t n) {
  const __m256i none = _mm256_setzero_si256();
  __m256i a0 = none, b0 = none, a1 = none, b1 = none, a2 = none, b2 = none, a3 = none, b3 = none;
  const int64_t ld = ldx * 2, ld3 = ldx * 6;
  __asm__ volatile(
      ".p2align 4\n"
      "1:\n\t" HEADWAY_PAIRS("0", "32", "0") HEADWAY_PAIRS("64", "96", "4")
      "subq $-128, %[w]\n\t"
      "addq $8, %[x]\n\t"
      "subq $4, %[n]\n\t"
      "jg 1b"
      : [w] "+r"(w), [x] "+r"(x), [n] "+r"(n), [a0] "+x"(a0), [b0] "+x"(b0), [a1] "+x"(a1), [b1] "+x"(b1),
        [a2] "+x"(a2), [b2] "+x"(b2), [a3] "+x"(a3), [b3] "+x"(b3)
      : [ld] "r"(ld), [ld3] "r"(ld3)
      : "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "memory", "cc");
  sums[0] = {a0, b0};
  sums[1] = {a1, b1};
  sums[2] = {a2, b2};
  sums[3] = {a3, b3};
}
#undef HEADWAY_PAIRS
#undef HEADWAY_PAIRS_ROW

// Sums of ROWS activation rows, `n` columns, a multiple of 4.
template <int ROWS> HEADWAY_INLINE void sum_pairs(I* sums, const int16_t* w, const int16_t* x, int64_t ldx, int64_t n) {
  if constexpr (ROWS == 4) return sum_pairs_4(sums, w, x, ldx, n);
  for (int r = 0; r < ROWS; ++r) sums[r] = set1i(0);
  for (; n > 0; n -= 2, w += 32, x += 2) {
    const I line = load_i((const int32_t*)w);
    for (int r = 0; r < ROWS; ++r) {
      const __m256i pair = _mm256_set1_epi32(*(const Quad*)(x + r * ldx));
      sums[r].a = _mm256_add_epi32(sums[r].a, _mm256_madd_epi16(line.a, pair));
      sums[r].b = _mm256_add_epi32(sums[r].b, _mm256_madd_epi16(line.b, pair));
    }
  }
}
HEADWAY_INLINE void store_i16(int16_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8));
}
// A line of 8-bit codes, byte 4 r + c, to two lines of pairs.
HEADWAY_INLINE void widen_pairs(const uint8_t* line, int zero, int16_t* to) {
  const __m256i less = _mm256_set1_epi16((short)zero);
  const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,  //
                                         0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
  const __m256i second = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,  //
                                          2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
  for (int half = 0; half < 2; ++half) {
    const __m256i codes = _mm256_loadu_si256((const __m256i*)(line + 32 * half));
    _mm256_storeu_si256((__m256i*)(to + 16 * half), _mm256_sub_epi16(_mm256_shuffle_epi8(codes, first), less));
    _mm256_storeu_si256((__m256i*)(to + 32 + 16 * half), _mm256_sub_epi16(_mm256_shuffle_epi8(codes, second), less));
  }
}

}  // namespace
}  // namespace headway

#include "../w8a16_kernel.h"

HEADWAY_W8A16(w8a16_avx2)
