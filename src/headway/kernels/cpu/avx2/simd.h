// Sixteen lanes at AVX2 + FMA + F16C, as two registers of eight. Same names and results as avx512/simd.h.
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define HEADWAY_INLINE static inline __attribute__((always_inline))

namespace headway {
namespace {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};

HEADWAY_INLINE F set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
HEADWAY_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HEADWAY_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HEADWAY_INLINE void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
HEADWAY_INLINE __m256i first8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
HEADWAY_INLINE F load_part(const float* p, int n) {
  return {_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
HEADWAY_INLINE void store_part(float* p, F x, int n) {
  _mm256_maskstore_ps(p, first8(n), x.a);
  _mm256_maskstore_ps(p + 8, first8(n - 8), x.b);
}
HEADWAY_INLINE F load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
HEADWAY_INLINE F load_bf16(const uint16_t* p) {
  const __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  const __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
HEADWAY_INLINE void store_f16(uint16_t* p, F x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, nearest));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, nearest));
}

HEADWAY_INLINE F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
HEADWAY_INLINE F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HEADWAY_INLINE F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HEADWAY_INLINE F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HEADWAY_INLINE F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HEADWAY_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
HEADWAY_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
HEADWAY_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HEADWAY_INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
HEADWAY_INLINE I bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
HEADWAY_INLINE F from_bits(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

HEADWAY_INLINE I set1i(int32_t x) {
  const __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
HEADWAY_INLINE I iota() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
HEADWAY_INLINE I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
HEADWAY_INLINE I operator-(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
HEADWAY_INLINE I operator*(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
HEADWAY_INLINE I operator&(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
HEADWAY_INLINE I shift_left(I x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
HEADWAY_INLINE I max(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
HEADWAY_INLINE F where_less(I x, I y, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(y.a, x.a))),
          _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(_mm256_cmpgt_epi32(y.b, x.b)))};
}
HEADWAY_INLINE I load_i(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
HEADWAY_INLINE void store_i(int32_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
HEADWAY_INLINE I load_u8(const uint8_t* p) {
  const __m128i v = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
HEADWAY_INLINE void store_i8(int8_t* p, I x) {
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i a = _mm256_shuffle_epi8(x.a, pick), b = _mm256_shuffle_epi8(x.b, pick);
  const __m128i low = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i top = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  _mm_storeu_si128((__m128i*)p, _mm_unpacklo_epi64(low, top));
}

HEADWAY_INLINE float sum(F x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
HEADWAY_INLINE int32_t sum(I x) {
  const __m256i h = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
HEADWAY_INLINE int32_t highest(I x) {
  const __m256i h = _mm256_max_epi32(x.a, x.b);
  __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
HEADWAY_INLINE float highest(F x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
template <int H> HEADWAY_INLINE F swap(F x) {
  if constexpr (H == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
  else if constexpr (H == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
  else if constexpr (H == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  else return {x.b, x.a};
}
HEADWAY_INLINE bool any_nan(F x) {
  const __m256 bad = _mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
  return _mm256_movemask_ps(bad) != 0;
}

// Out of the registers, of which there are too few: the compiler would rather spill what the next loop sums.
HEADWAY_INLINE void park(F& x) { __asm__ volatile("" : "+m"(x.a), "+m"(x.b)); }

typedef int32_t Quad __attribute__((may_alias, aligned(1)));

struct Codes {
  __m256i a, b;  // rows 0..7, rows 8..15
};
HEADWAY_INLINE Codes load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
HEADWAY_INLINE void store_codes(uint8_t* p, Codes c) {
  _mm256_storeu_si256((__m256i*)p, c.a);
  _mm256_storeu_si256((__m256i*)(p + 32), c.b);
}
HEADWAY_INLINE Codes low(Codes c) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(c.a, m), _mm256_and_si256(c.b, m)};
}
HEADWAY_INLINE Codes high(Codes c) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(c.a, 4), m), _mm256_and_si256(_mm256_srli_epi16(c.b, 4), m)};
}

HEADWAY_INLINE Codes shift_left(Codes c, int n) { return {_mm256_slli_epi16(c.a, n), _mm256_slli_epi16(c.b, n)}; }
HEADWAY_INLINE Codes shift_right(Codes c, int n) { return {_mm256_srli_epi16(c.a, n), _mm256_srli_epi16(c.b, n)}; }
HEADWAY_INLINE Codes masked(Codes c, uint8_t m) {
  const __m256i v = _mm256_set1_epi8((char)m);
  return {_mm256_and_si256(c.a, v), _mm256_and_si256(c.b, v)};
}
HEADWAY_INLINE Codes choose(uint8_t m, Codes yes, Codes no) {
  const __m256i v = _mm256_set1_epi8((char)m);
  return {_mm256_or_si256(_mm256_and_si256(v, yes.a), _mm256_andnot_si256(v, no.a)),
          _mm256_or_si256(_mm256_and_si256(v, yes.b), _mm256_andnot_si256(v, no.b))};
}

// Intrinsics would have the compiler copy sums from register to register, and to the stack, in every turn of a loop.
HEADWAY_INLINE void add_product(__m256i& sum, __m256i codes, __m256i x) {
  __m256i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(codes), "x"(x));
}

// 4-bit codes: at most 8 quads x 2 x 15 x 128 = 30,720, so a block of 32 columns is summed in int16.
template <int BITS> struct Dot {
  static constexpr int halves = 1;  // passes over a block, each over some of the 16 rows
  __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
  HEADWAY_INLINE void init(Dot& d) { d.a = d.b = _mm256_setzero_si256(); }
  HEADWAY_INLINE void add(Dot& d, Codes c, const int8_t* quad) {
    const __m256i x = _mm256_set1_epi32(*(const Quad*)quad);
    add_product(d.a, c.a, x);
    add_product(d.b, c.b, x);
  }
  template <int> HEADWAY_INLINE void add_half(Dot& d, Codes c, const int8_t* quad) { add(d, c, quad); }
  HEADWAY_INLINE I total(const Dot& d) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(d.a, one), _mm256_madd_epi16(d.b, one)};
  }
};
// 8-bit codes would saturate: low and high nibbles apart, joined at the end. Both of all rows would need more registers
// than there are.
template <> struct Dot<8> {
  static constexpr int halves = 2;
  Dot<4> lo, hi;
  HEADWAY_INLINE void init(Dot& d) {
    Dot<4>::init(d.lo);
    Dot<4>::init(d.hi);
  }
  template <int H> HEADWAY_INLINE void add_half(Dot& d, Codes c, const int8_t* quad) {
    const __m256i x = _mm256_set1_epi32(*(const Quad*)quad);
    add_product(H ? d.lo.b : d.lo.a, H ? low(c).b : low(c).a, x);
    add_product(H ? d.hi.b : d.hi.a, H ? high(c).b : high(c).a, x);
  }
  HEADWAY_INLINE void add(Dot& d, Codes c, const int8_t* quad) {
    add_half<0>(d, c, quad);
    add_half<1>(d, c, quad);
  }
  HEADWAY_INLINE I total(const Dot& d) {
    const __m256i one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
    return {_mm256_add_epi32(_mm256_madd_epi16(d.lo.a, one), _mm256_madd_epi16(d.hi.a, sixteen)),
            _mm256_add_epi32(_mm256_madd_epi16(d.lo.b, one), _mm256_madd_epi16(d.hi.b, sixteen))};
  }
};

// Sums of stored keys or values times signed codes; `settle` comes at least every `quads`.
template <int BITS> struct PageDot;
// Code + 128 is stored. Products as |code| x activation with the code's sign, pairs fit int16.
template <> struct PageDot<8> {
  static constexpr int64_t quads = 1 << 30;
  __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
  HEADWAY_INLINE __m256i product(__m256i codes, __m256i x) {
    const __m256i c = _mm256_xor_si256(codes, _mm256_set1_epi8((char)128));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(x, c)), _mm256_set1_epi16(1));
  }
  HEADWAY_INLINE void add(PageDot& d, Codes c, const int8_t* quad) {
    const __m256i x = _mm256_set1_epi32(*(const Quad*)quad);
    d.a = _mm256_add_epi32(d.a, product(c.a, x));
    d.b = _mm256_add_epi32(d.b, product(c.b, x));
  }
  HEADWAY_INLINE void settle(PageDot&) {}
  HEADWAY_INLINE I total(const PageDot& d, int32_t) { return {d.a, d.b}; }
};
// Nibble c stands for 2 c - 15.
template <> struct PageDot<4> {
  static constexpr int64_t quads = 8;
  Dot<4> dot;
  I wide = set1i(0);
  HEADWAY_INLINE void add(PageDot& d, Codes c, const int8_t* quad) { Dot<4>::add(d.dot, c, quad); }
  HEADWAY_INLINE void settle(PageDot& d) {
    d.wide = d.wide + Dot<4>::total(d.dot);
    Dot<4>::init(d.dot);
  }
  HEADWAY_INLINE I total(const PageDot& d, int32_t sum) { return d.wide + d.wide - set1i(15 * sum); }
};

constexpr int kDenseColumns = 6;
constexpr int kDenseTiles = 4;
constexpr int kPaneTiles = 1;
constexpr int kPaneColumns = 6;
constexpr int kTileColumns = 6;
constexpr int kUnpackedQuads = 8;
constexpr int kIntColumns = 4;
constexpr int kKeyVectors = 1;
constexpr int kQueryRows = 6;

}  // namespace
}  // namespace headway
