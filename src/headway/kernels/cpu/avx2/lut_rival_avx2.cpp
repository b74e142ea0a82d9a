// The rivals for AVX2: halves of 8 rows of each line. Codes to bytes, `vpmaddubsw`, 16-bit sums over 64 columns
// (16 x 7 x 127 x 2 = 28,448). Per 32 weights: planes 6.6 operations, fields 4.1; floats 12.4.
#include <immintrin.h>

#include "../lut_rival.h"

namespace headway::lut {
namespace {

inline __m256i both(__m256i a, int mask) { return _mm256_and_si256(a, _mm256_set1_epi8(char(mask))); }

inline void dot(__m256i& acc, __m256i codes, const int8_t* quad) {
  int32_t four;
  __builtin_memcpy(&four, quad, 4);
  acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
}

inline __m256i join(__m256i low, __m256i high) { return _mm256_or_si256(both(low, 3), both(high, 4)); }

struct Planes {
  static void add(__m256i& acc, const __m256i line[3], const int8_t* x) {
    const __m256i low = line[0], more = line[1], high = line[2];
    dot(acc, join(low, _mm256_slli_epi16(high, 2)), x);
    dot(acc, join(_mm256_srli_epi16(low, 2), _mm256_slli_epi16(high, 1)), x + 4);
    dot(acc, join(_mm256_srli_epi16(low, 4), high), x + 8);
    dot(acc, join(_mm256_srli_epi16(low, 6), _mm256_srli_epi16(high, 1)), x + 12);
    dot(acc, join(more, _mm256_srli_epi16(high, 2)), x + 16);
    dot(acc, join(_mm256_srli_epi16(more, 2), _mm256_srli_epi16(high, 3)), x + 20);
    dot(acc, join(_mm256_srli_epi16(more, 4), _mm256_srli_epi16(high, 4)), x + 24);
    dot(acc, join(_mm256_srli_epi16(more, 6), _mm256_srli_epi16(high, 5)), x + 28);
  }
};

struct Fields {
  static void add(__m256i& acc, const __m256i line[3], const int8_t* x) {
    for (int i = 0; i < 3; ++i) {
      dot(acc, both(line[i], 7), x + 4 * i);
      dot(acc, both(_mm256_srli_epi16(line[i], 3), 7), x + 12 + 4 * i);
    }
    dot(acc, join(_mm256_srli_epi16(line[0], 6), _mm256_srli_epi16(line[2], 4)), x + 24);
    dot(acc, join(_mm256_srli_epi16(line[1], 6), _mm256_srli_epi16(line[2], 5)), x + 28);
  }
};

inline __m256 halves(const uint8_t* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

inline void load(const uint8_t* at, int h, __m256i line[3]) {
  for (int i = 0; i < 3; ++i) {
    if (h == 0) _mm_prefetch(at + 64 * i + kAhead, _MM_HINT_T0);
    line[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 64 * i + 32 * h));
  }
}

inline void store(float* y, int64_t tile, int64_t out, const __m256 acc[2]) {
  float* to = y + tile * 16;
  float all[16];
  const int64_t left = out - tile * 16;
  float* where = left >= 16 ? to : all;
  _mm256_storeu_ps(where, acc[0]);
  _mm256_storeu_ps(where + 8, acc[1]);
  for (int64_t r = 0; left < 16 && r < left; ++r) to[r] = all[r];
}

template <class Codes>
void integer(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* at = w.data + tile * w.tile_bytes;
    const int8_t* codes = x.codes;
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t left = w.blocks, group = 0; left > 0; left -= w.group_blocks, ++group, at += 64) {
      __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      for (int64_t blocks = left < w.group_blocks ? left : w.group_blocks; blocks > 0; blocks -= 2) {
        __m256i words[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t b = blocks < 2 ? blocks : 2; b > 0; --b, at += 192, codes += 32)
          for (int h = 0; h < 2; ++h) {
            __m256i line[3];
            load(at, h, line);
            Codes::add(words[h], line, codes);
          }
        for (int h = 0; h < 2; ++h) total[h] = _mm256_add_epi32(total[h], _mm256_madd_epi16(words[h], ones));
      }
      const __m256 scale = _mm256_set1_ps(x.scales[group]), sum = _mm256_set1_ps(x.sums[group]);
      _mm_prefetch(at + kAhead, _MM_HINT_T0);
      for (int h = 0; h < 2; ++h) {
        acc[h] = _mm256_fmadd_ps(halves(at + 16 * h), _mm256_mul_ps(_mm256_cvtepi32_ps(total[h]), scale), acc[h]);
        acc[h] = _mm256_fmadd_ps(halves(at + 32 + 16 * h), sum, acc[h]);
      }
    }
    store(y, tile, w.out, acc);
  }
}

void floats(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end) {
  const __m256 table = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  const auto add = [&](__m256& to, __m256i codes, float activation) {
    to = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(table, codes), _mm256_set1_ps(activation), to);
  };
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* at = w.data + tile * w.tile_bytes;
    const float* from = x.x;
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t left = w.blocks, group = 0; left > 0; left -= w.group_blocks, ++group, at += 64) {
      __m256 part[2][2] = {{_mm256_setzero_ps(), _mm256_setzero_ps()}, {_mm256_setzero_ps(), _mm256_setzero_ps()}};
      for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b, at += 192, from += 32)
        for (int h = 0; h < 2; ++h) {
          __m256i line[3];
          load(at, h, line);
          for (int i = 0; i < 3; ++i)
            for (int k = 0; k < 10; ++k) add(part[h][k & 1], _mm256_srli_epi32(line[i], 3 * k), from[10 * i + k]);
          const __m256i middle = _mm256_slli_epi32(_mm256_srli_epi32(line[1], 30), 2);
          const __m256i high = _mm256_slli_epi32(_mm256_srli_epi32(line[2], 30), 4);
          const __m256i rest = _mm256_or_si256(_mm256_or_si256(_mm256_srli_epi32(line[0], 30), middle), high);
          add(part[h][0], rest, from[30]);
          add(part[h][1], _mm256_srli_epi32(rest, 3), from[31]);
        }
      _mm_prefetch(at + kAhead, _MM_HINT_T0);
      for (int h = 0; h < 2; ++h) {
        acc[h] = _mm256_fmadd_ps(halves(at + 16 * h), _mm256_add_ps(part[h][0], part[h][1]), acc[h]);
        acc[h] = _mm256_fmadd_ps(halves(at + 32 + 16 * h), _mm256_set1_ps(x.sums[group]), acc[h]);
      }
    }
    store(y, tile, w.out, acc);
  }
}

const RivalKernels kRivals = {{integer<Planes>, integer<Fields>, floats}};

}  // namespace

const RivalKernels& avx2_rivals() { return kRivals; }

}  // namespace headway::lut
