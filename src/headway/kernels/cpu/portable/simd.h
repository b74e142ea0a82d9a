// Sixteen lanes in plain C++ vectors: runs anywhere. Same names and results as avx512/simd.h, bit for bit.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HEADWAY_INLINE static inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi"

namespace headway {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t LanesI __attribute__((vector_size(64)));
typedef uint32_t LanesU __attribute__((vector_size(64)));
typedef double Lanes8d __attribute__((vector_size(64)));
typedef int64_t Lanes8l __attribute__((vector_size(64)));
typedef float Lanes8 __attribute__((vector_size(32)));

struct F {
  Lanes v;
};
struct I {
  LanesI v;
};

HEADWAY_INLINE F set1(float a) { return {a - Lanes{}}; }
HEADWAY_INLINE F zero() { return {Lanes{}}; }
HEADWAY_INLINE F load(const float* p) {
  F a;
  memcpy(&a, p, sizeof a);
  return a;
}
HEADWAY_INLINE void store(float* p, F a) { memcpy(p, &a, sizeof a); }
HEADWAY_INLINE F load_part(const float* p, int n) {
  F a = zero();
  for (int i = 0; i < 16; ++i)
    if (i < n) a.v[i] = p[i];
  return a;
}
HEADWAY_INLINE void store_part(float* p, F a, int n) {
  for (int i = 0; i < 16; ++i)
    if (i < n) p[i] = a.v[i];
}

HEADWAY_INLINE Lanes as_float(LanesI a) { return (Lanes)a; }
HEADWAY_INLINE Lanes select(LanesI mask, Lanes x, Lanes y) { return as_float((mask & (LanesI)x) | (~mask & (LanesI)y)); }

HEADWAY_INLINE F load_f16(const uint16_t* p) {
  LanesI h;
  for (int i = 0; i < 16; ++i) h[i] = p[i];
  const LanesI magnitude = h & 0x7fff, sign = (h & 0x8000) << 16;
  // As a float the bits are 2^112 too small; infinities and NaN get the full exponent.
  const Lanes scaled = as_float(magnitude << 13) * 5.192296858534828e33f;
  const LanesI special = (magnitude << 13) | 0x7f800000;
  return {as_float((LanesI)select(magnitude >= 0x7c00, as_float(special), scaled) | sign)};
}
HEADWAY_INLINE F load_bf16(const uint16_t* p) {
  LanesI h;
  for (int i = 0; i < 16; ++i) h[i] = (int32_t)((uint32_t)p[i] << 16);
  return {as_float(h)};
}
HEADWAY_INLINE uint16_t half_of(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  const uint32_t sign = (b >> 16) & 0x8000;
  b &= 0x7fffffff;
  if (b >= 0x7f800000) return (uint16_t)(sign | (b > 0x7f800000 ? 0x7e00 | ((b >> 13) & 0x3ff) : 0x7c00));
  if (b >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (b < 0x38800000) {  // subnormal: adding 0.5 rounds at the right place
    float f;
    memcpy(&f, &b, 4);
    f += 0.5f;
    memcpy(&b, &f, 4);
    return (uint16_t)(sign | (b - 0x3f000000));
  }
  return (uint16_t)(sign | ((b + 0xc8000fff + ((b >> 13) & 1)) >> 13));
}
HEADWAY_INLINE void store_f16(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = half_of(a.v[i]);
}

#if defined(__FP_FAST_FMAF)
HEADWAY_INLINE F fma(F a, F b, F c) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
#else
// Fused multiply-add without the instruction. The product is exact in double; the sum is rounded to odd there, which
// leaves the last rounding, to float, as if it were the only one (Boldo and Melquiond 2008).
HEADWAY_INLINE Lanes8 fma8(Lanes8 a, Lanes8 b, Lanes8 c) {
  const Lanes8d p = __builtin_convertvector(a, Lanes8d) * __builtin_convertvector(b, Lanes8d);
  const Lanes8d z = __builtin_convertvector(c, Lanes8d);
  const Lanes8d s = p + z;
  const Lanes8d back = s - p;
  const Lanes8d lost = (p - (s - back)) + (z - back);
  const Lanes8l even = -(1 - ((Lanes8l)s & 1));
  const Lanes8l inexact = (Lanes8l)(lost > 0.0) | (Lanes8l)(lost < 0.0);
  // Away from zero when what was lost has the sign of s, else towards it: bits + 1 or bits - 1.
  const Lanes8l step = 1 - 2 * ((((Lanes8l)s ^ (Lanes8l)lost) >> 63) & 1);
  return __builtin_convertvector((Lanes8d)((Lanes8l)s + (step & even & inexact)), Lanes8);
}
// Not inlined: a hundred instructions at each of a kernel's many uses take the compiler minutes and gain nothing.
static __attribute__((noinline)) F fma(F a, F b, F c) {
  Lanes8 x[2], y[2], z[2], r[2];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  memcpy(z, &c, 64);
  r[0] = fma8(x[0], y[0], z[0]);
  r[1] = fma8(x[1], y[1], z[1]);
  F out;
  memcpy(&out, r, 64);
  return out;
}
#endif
HEADWAY_INLINE F operator+(F a, F b) { return {a.v + b.v}; }
HEADWAY_INLINE F operator-(F a, F b) { return {a.v - b.v}; }
HEADWAY_INLINE F operator*(F a, F b) { return {a.v * b.v}; }
HEADWAY_INLINE F operator/(F a, F b) { return {a.v / b.v}; }
HEADWAY_INLINE F max(F a, F b) { return {select(a.v > b.v, a.v, b.v)}; }
HEADWAY_INLINE F min(F a, F b) { return {select(a.v < b.v, a.v, b.v)}; }
HEADWAY_INLINE F to_float(I a) { return {__builtin_convertvector(a.v, Lanes)}; }
HEADWAY_INLINE I to_int(F a) {
  const Lanes magic = set1(12582912.0f).v;  // 1.5 * 2^23: |a| < 2^22
  return {(LanesI)(a.v + magic) - (LanesI)magic};
}
HEADWAY_INLINE I bits(F a) { return {(LanesI)a.v}; }
HEADWAY_INLINE F from_bits(I a) { return {as_float(a.v)}; }

HEADWAY_INLINE I set1i(int32_t a) { return {a - LanesI{}}; }
HEADWAY_INLINE I iota() { return {LanesI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}; }
HEADWAY_INLINE I operator+(I a, I b) { return {(LanesI)((LanesU)a.v + (LanesU)b.v)}; }
HEADWAY_INLINE I operator-(I a, I b) { return {(LanesI)((LanesU)a.v - (LanesU)b.v)}; }
HEADWAY_INLINE I operator*(I a, I b) { return {(LanesI)((LanesU)a.v * (LanesU)b.v)}; }
HEADWAY_INLINE I operator&(I a, I b) { return {a.v & b.v}; }
HEADWAY_INLINE I shift_left(I a, int n) { return {(LanesI)((LanesU)a.v << n)}; }
HEADWAY_INLINE I max(I a, I b) {
  const LanesI m = a.v > b.v;
  return {(m & a.v) | (~m & b.v)};
}
HEADWAY_INLINE F where_less(I a, I b, F x, F y) { return {select(a.v < b.v, x.v, y.v)}; }
HEADWAY_INLINE I load_i(const int32_t* p) {
  I a;
  memcpy(&a, p, sizeof a);
  return a;
}
HEADWAY_INLINE void store_i(int32_t* p, I a) { memcpy(p, &a, sizeof a); }
HEADWAY_INLINE I load_u8(const uint8_t* p) {
  I a;
  for (int i = 0; i < 16; ++i) a.v[i] = p[i];
  return a;
}
HEADWAY_INLINE void store_i8(int8_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = (int8_t)a.v[i];
}

HEADWAY_INLINE float sum(F a) {
  float t[16];
  memcpy(t, &a, sizeof t);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}
HEADWAY_INLINE int32_t sum(I a) {
  uint32_t t = 0;
  for (int i = 0; i < 16; ++i) t += (uint32_t)a.v[i];
  return (int32_t)t;
}
HEADWAY_INLINE int32_t highest(I a) {
  int32_t t = a.v[0];
  for (int i = 1; i < 16; ++i) t = a.v[i] > t ? a.v[i] : t;
  return t;
}
HEADWAY_INLINE float highest(F a) {
  float t = a.v[0];
  for (int i = 1; i < 16; ++i) t = a.v[i] > t ? a.v[i] : t;
  return t;
}
template <int H> HEADWAY_INLINE F swap(F a) {
  F b = a;
  for (int i = 0; i < 16; ++i) b.v[i] = a.v[i ^ H];
  return b;
}
HEADWAY_INLINE bool any_nan(F a) {
  bool bad = false;
  for (int i = 0; i < 16; ++i) bad |= a.v[i] != a.v[i];
  return bad;
}

struct Codes {
  uint8_t v[64];
};
HEADWAY_INLINE Codes load_codes(const uint8_t* p) {
  Codes c;
  memcpy(&c, p, 64);
  return c;
}
HEADWAY_INLINE void store_codes(uint8_t* p, Codes c) { memcpy(p, &c, 64); }
HEADWAY_INLINE Codes low(Codes c) {
  for (int i = 0; i < 64; ++i) c.v[i] &= 15;
  return c;
}
HEADWAY_INLINE Codes high(Codes c) {
  for (int i = 0; i < 64; ++i) c.v[i] >>= 4;
  return c;
}

HEADWAY_INLINE Codes shift_left(Codes c, int n) {
  for (int i = 0; i < 64; ++i) c.v[i] = (uint8_t)(c.v[i] << n);
  return c;
}
HEADWAY_INLINE Codes shift_right(Codes c, int n) {
  for (int i = 0; i < 64; ++i) c.v[i] = (uint8_t)(c.v[i] >> n);
  return c;
}
HEADWAY_INLINE Codes masked(Codes c, uint8_t m) {
  for (int i = 0; i < 64; ++i) c.v[i] &= m;
  return c;
}
HEADWAY_INLINE Codes choose(uint8_t m, const Codes& yes, Codes no) {
  for (int i = 0; i < 64; ++i) no.v[i] = (uint8_t)((yes.v[i] & m) | (no.v[i] & ~m));
  return no;
}

HEADWAY_INLINE void park(F&) {}  // registers suffice

template <int BITS> struct Dot {
  static constexpr int halves = 1;
  int32_t v[16];
  HEADWAY_INLINE void init(Dot& d) { memset(d.v, 0, sizeof d.v); }
  HEADWAY_INLINE void add(Dot& d, const Codes& c, const int8_t* quad) {
    for (int r = 0; r < 16; ++r)
      d.v[r] += c.v[4 * r] * quad[0] + c.v[4 * r + 1] * quad[1] + c.v[4 * r + 2] * quad[2] + c.v[4 * r + 3] * quad[3];
  }
  template <int> HEADWAY_INLINE void add_half(Dot& d, const Codes& c, const int8_t* quad) { add(d, c, quad); }
  HEADWAY_INLINE I total(const Dot& d) {
    I a;
    memcpy(&a, d.v, sizeof a);
    return a;
  }
};

// Sums of stored keys or values: as avx512/simd.h says.
template <int BITS> struct PageDot {
  static constexpr int64_t quads = 1 << 30;
  Dot<BITS> dot{};
  HEADWAY_INLINE void add(PageDot& d, const Codes& c, const int8_t* quad) { Dot<BITS>::add(d.dot, c, quad); }
  HEADWAY_INLINE void settle(PageDot&) {}
  HEADWAY_INLINE I total(const PageDot& d, int32_t sum) {
    const I codes = Dot<BITS>::total(d.dot);
    return BITS == 8 ? codes - set1i(128 * sum) : codes + codes - set1i(15 * sum);
  }
};

constexpr int kDenseColumns = 4;
constexpr int kDenseTiles = 1;
constexpr int kPaneTiles = 1;
constexpr int kPaneColumns = 4;
constexpr int kTileColumns = 4;
constexpr int kUnpackedQuads = 1;  // quads of an unpacked tile that one turn of the loop takes
constexpr int kIntColumns = 4;
constexpr int kKeyVectors = 1;
constexpr int kQueryRows = 4;

}  // namespace
}  // namespace headway
