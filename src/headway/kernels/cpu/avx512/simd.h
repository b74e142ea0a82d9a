// Sixteen lanes at AVX-512 (F, BW, DQ, VL, VNNI). Same names and same results in avx2/simd.h and portable/simd.h.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC diagnostic ignored "-Wuninitialized"  // inside the intrinsics of some compilers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define HEADWAY_INLINE static inline __attribute__((always_inline))

namespace headway {
namespace {

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

HEADWAY_INLINE F set1(float a) { return {_mm512_set1_ps(a)}; }
HEADWAY_INLINE F zero() { return {_mm512_setzero_ps()}; }
HEADWAY_INLINE F load(const float* p) { return {_mm512_loadu_ps(p)}; }
HEADWAY_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
HEADWAY_INLINE __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
HEADWAY_INLINE F load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
HEADWAY_INLINE void store_part(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
HEADWAY_INLINE F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
HEADWAY_INLINE F load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
HEADWAY_INLINE void store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

HEADWAY_INLINE F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HEADWAY_INLINE F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
HEADWAY_INLINE F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
HEADWAY_INLINE F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
HEADWAY_INLINE F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
// The second operand if either is not a number.
HEADWAY_INLINE F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
HEADWAY_INLINE F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
HEADWAY_INLINE F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
HEADWAY_INLINE I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
HEADWAY_INLINE I bits(F a) { return {_mm512_castps_si512(a.v)}; }
HEADWAY_INLINE F from_bits(I a) { return {_mm512_castsi512_ps(a.v)}; }

HEADWAY_INLINE I set1i(int32_t a) { return {_mm512_set1_epi32(a)}; }
HEADWAY_INLINE I iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
HEADWAY_INLINE I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
HEADWAY_INLINE I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
HEADWAY_INLINE I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
HEADWAY_INLINE I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
HEADWAY_INLINE I shift_left(I a, int n) { return {_mm512_slli_epi32(a.v, (unsigned)n)}; }
HEADWAY_INLINE I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
// a < b ? x : y
HEADWAY_INLINE F where_less(I a, I b, F x, F y) {
  return {_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(a.v, b.v), y.v, x.v)};
}
HEADWAY_INLINE I load_i(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
HEADWAY_INLINE void store_i(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
HEADWAY_INLINE I load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
HEADWAY_INLINE void store_i8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }

// Sums and maxima fold halves: lanes i and i+8, then i and i+4, i+2, i+1.
HEADWAY_INLINE float sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
HEADWAY_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
HEADWAY_INLINE int32_t highest(I a) { return _mm512_reduce_max_epi32(a.v); }
HEADWAY_INLINE float highest(F a) { return _mm512_reduce_max_ps(a.v); }
// Lane l from lane l ^ H.
template <int H> HEADWAY_INLINE F swap(F a) {
  if constexpr (H == 1) return {_mm512_permute_ps(a.v, 0xb1)};
  else if constexpr (H == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  else if constexpr (H == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  else return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}
HEADWAY_INLINE bool any_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

// ---- integer products: 16 rows x 4 columns of unsigned codes against 4 signed activations ----
typedef int32_t Quad __attribute__((may_alias, aligned(1)));

struct Codes {
  __m512i v;
};
HEADWAY_INLINE Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
HEADWAY_INLINE void store_codes(uint8_t* p, Codes c) { _mm512_storeu_si512(p, c.v); }
HEADWAY_INLINE Codes low(Codes c) { return {_mm512_and_si512(c.v, _mm512_set1_epi8(15))}; }
HEADWAY_INLINE Codes high(Codes c) { return {_mm512_and_si512(_mm512_srli_epi16(c.v, 4), _mm512_set1_epi8(15))}; }

// Shifts that carry bits over from the next byte: mask what comes of them.
HEADWAY_INLINE Codes shift_left(Codes c, int n) { return {_mm512_slli_epi16(c.v, (unsigned)n)}; }
HEADWAY_INLINE Codes shift_right(Codes c, int n) { return {_mm512_srli_epi16(c.v, (unsigned)n)}; }
HEADWAY_INLINE Codes masked(Codes c, uint8_t m) { return {_mm512_and_si512(c.v, _mm512_set1_epi8((char)m))}; }
// Bits of `yes` where the mask of each byte has ones, else of `no`.
HEADWAY_INLINE Codes choose(uint8_t m, Codes yes, Codes no) {
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8((char)m), yes.v, no.v, 0xca)};
}

HEADWAY_INLINE void park(F&) {}  // registers suffice

// Sums over a block of at most 32 columns; BITS tells how large a code can be.
template <int BITS> struct Dot {
  static constexpr int halves = 1;
  __m512i v = _mm512_setzero_si512();
  HEADWAY_INLINE void init(Dot& d) { d.v = _mm512_setzero_si512(); }
  HEADWAY_INLINE void add(Dot& d, Codes c, const int8_t* quad) {
    // The intrinsic would broadcast with an instruction of its own.
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(d.v) : "v"(c.v), "m"(*(const Quad*)quad));
  }
  template <int> HEADWAY_INLINE void add_half(Dot& d, Codes c, const int8_t* quad) { add(d, c, quad); }
  HEADWAY_INLINE I total(const Dot& d) { return {d.v}; }
};

// Sums of stored keys or values times signed codes; `settle` comes at least every `quads`. Of 8 bits code + 128 is
// stored, nibble c stands for 2 c - 15: `total` makes that good with the sum of the signed codes.
template <int BITS> struct PageDot {
  static constexpr int64_t quads = 1 << 30;
  Dot<BITS> dot;
  HEADWAY_INLINE void add(PageDot& d, Codes c, const int8_t* quad) { Dot<BITS>::add(d.dot, c, quad); }
  HEADWAY_INLINE void settle(PageDot&) {}
  HEADWAY_INLINE I total(const PageDot& d, int32_t sum) {
    const I codes = Dot<BITS>::total(d.dot);
    return BITS == 8 ? codes - set1i(128 * sum) : codes + codes - set1i(15 * sum);
  }
};

constexpr int kDenseColumns = 8;   // activation rows one dense register block takes
constexpr int kDenseTiles = 4;     // row tiles one dense GEMV takes at once
constexpr int kPaneTiles = 2;      // row tiles and activation rows of one dense GEMM block
constexpr int kPaneColumns = 12;
constexpr int kTileColumns = 24;   // the same of a tile alone
constexpr int kUnpackedQuads = 1;  // quads of an unpacked tile that one turn of the loop takes
constexpr int kIntColumns = 8;     // activation rows one integer register block takes
constexpr int kKeyVectors = 4;     // vectors of 16 keys scored at once
constexpr int kQueryRows = 4;      // query rows scored at once, where there are many

}  // namespace
}  // namespace headway
