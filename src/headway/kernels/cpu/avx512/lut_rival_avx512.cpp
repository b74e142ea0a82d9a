// The rivals for AVX-512 with VNNI. Operations per 64 weights, dot product included: planes 4.6, fields 2.5,
// floats 12.4.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: its own _mm512_undefined_epi32
#endif
#include <immintrin.h>

#include "../lut_rival.h"

namespace headway::lut {
namespace {

// Four activations (one quad) against the codes of 16 rows.
inline void dot(__m512i& acc, __m512i codes, const int8_t* quad) {
  int32_t four;
  __builtin_memcpy(&four, quad, 4);
  acc = _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
}

struct Block {
  __m512i line[3];
  explicit Block(const uint8_t* at)
      : line{_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64), _mm512_loadu_si512(at + 128)} {
    for (int i = 0; i < 3; ++i) _mm_prefetch(at + 64 * i + kAhead, _MM_HINT_T0);
  }
};

// Low two bits of `low`, third bit of `high`.
inline __m512i join(__m512i low, __m512i high) {
  return _mm512_and_si512(_mm512_ternarylogic_epi32(_mm512_set1_epi8(3), low, high, 0xca), _mm512_set1_epi8(7));
}

struct Planes {
  __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
  void add(const Block& block, const int8_t* x) {
    const __m512i low = block.line[0], more = block.line[1], high = block.line[2];
    dot(a, join(low, _mm512_slli_epi16(high, 2)), x);
    dot(b, join(_mm512_srli_epi16(low, 2), _mm512_slli_epi16(high, 1)), x + 4);
    dot(a, join(_mm512_srli_epi16(low, 4), high), x + 8);
    dot(b, join(_mm512_srli_epi16(low, 6), _mm512_srli_epi16(high, 1)), x + 12);
    dot(a, join(more, _mm512_srli_epi16(high, 2)), x + 16);
    dot(b, join(_mm512_srli_epi16(more, 2), _mm512_srli_epi16(high, 3)), x + 20);
    dot(a, join(_mm512_srli_epi16(more, 4), _mm512_srli_epi16(high, 4)), x + 24);
    dot(b, join(_mm512_srli_epi16(more, 6), _mm512_srli_epi16(high, 5)), x + 28);
  }
  __m512i total() const { return _mm512_add_epi32(a, b); }
};

// Sums of 1, 8, 64, 16 and 32 times the codes (or of part of their bits): exact, shifted back at the group's end.
struct Fields {
  __m512i one = _mm512_setzero_si512(), by8 = one, by64 = one, by16 = one, by32 = one;
  void add(const Block& block, const int8_t* x) {
    const __m512i first = _mm512_set1_epi8(7), second = _mm512_set1_epi8(0x38), top = _mm512_set1_epi8(char(0xc0));
    for (int i = 0; i < 3; ++i) {
      dot(one, _mm512_and_si512(block.line[i], first), x + 4 * i);
      dot(by8, _mm512_and_si512(block.line[i], second), x + 12 + 4 * i);
    }
    dot(by64, _mm512_and_si512(block.line[0], top), x + 24);
    dot(by64, _mm512_and_si512(block.line[1], top), x + 28);
    dot(by16, _mm512_and_si512(block.line[2], _mm512_set1_epi8(0x40)), x + 24);
    dot(by32, _mm512_and_si512(block.line[2], _mm512_set1_epi8(char(0x80))), x + 28);
  }
  __m512i total() const {
    const __m512i low = _mm512_add_epi32(one, _mm512_srai_epi32(by8, 3));
    const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(by16, 4), _mm512_srai_epi32(by32, 5));
    return _mm512_add_epi32(_mm512_add_epi32(low, _mm512_srai_epi32(by64, 6)), high);
  }
};

inline __m512 halves(const uint8_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

inline void store(float* y, int64_t tile, int64_t out, __m512 acc) {
  const int64_t left = out - tile * 16;
  _mm512_mask_storeu_ps(y + tile * 16, left >= 16 ? 0xffff : __mmask16((1u << left) - 1), acc);
}

template <class Sums>
void integer(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* at = w.data + tile * w.tile_bytes;
    const int8_t* codes = x.codes;
    __m512 acc = _mm512_setzero_ps();
    for (int64_t left = w.blocks, group = 0; left > 0; left -= w.group_blocks, ++group, at += 64) {
      Sums sums;
      if (w.group_blocks == 2 && left >= 2) {  // the common group, without a loop
        sums.add(Block(at), codes);
        sums.add(Block(at + 192), codes + 32);
        at += 384;
        codes += 64;
      } else {
        for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b, at += 192, codes += 32)
          sums.add(Block(at), codes);
      }
      const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums.total()), _mm512_set1_ps(x.scales[group]));
      _mm_prefetch(at + kAhead, _MM_HINT_T0);
      acc = _mm512_fmadd_ps(halves(at), value, acc);
      acc = _mm512_fmadd_ps(halves(at + 32), _mm512_set1_ps(x.sums[group]), acc);
    }
    store(y, tile, w.out, acc);
  }
}

void floats(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end) {
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);  // the fourth bit is another's
  const auto add = [&](__m512& to, __m512i codes, float activation) {
    to = _mm512_fmadd_ps(_mm512_permutexvar_ps(codes, table), _mm512_set1_ps(activation), to);
  };
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* at = w.data + tile * w.tile_bytes;
    const float* from = x.x;
    __m512 acc = _mm512_setzero_ps();
    for (int64_t left = w.blocks, group = 0; left > 0; left -= w.group_blocks, ++group, at += 64) {
      __m512 even = _mm512_setzero_ps(), odd = even;
      for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b, at += 192, from += 32) {
        const Block block(at);
        for (int i = 0; i < 3; ++i)
          for (int k = 0; k < 10; k += 2) {
            add(even, _mm512_srli_epi32(block.line[i], unsigned(3 * k)), from[10 * i + k]);
            add(odd, _mm512_srli_epi32(block.line[i], unsigned(3 * k + 3)), from[10 * i + k + 1]);
          }
        const __m512i low = _mm512_srli_epi32(block.line[0], 30);
        const __m512i middle = _mm512_slli_epi32(_mm512_srli_epi32(block.line[1], 30), 2);
        const __m512i high = _mm512_slli_epi32(_mm512_srli_epi32(block.line[2], 30), 4);
        const __m512i rest = _mm512_or_si512(_mm512_or_si512(low, middle), high);
        add(even, rest, from[30]);
        add(odd, _mm512_srli_epi32(rest, 3), from[31]);
      }
      _mm_prefetch(at + kAhead, _MM_HINT_T0);
      acc = _mm512_fmadd_ps(halves(at), _mm512_add_ps(even, odd), acc);
      acc = _mm512_fmadd_ps(halves(at + 32), _mm512_set1_ps(x.sums[group]), acc);
    }
    store(y, tile, w.out, acc);
  }
}

const RivalKernels kRivals = {{integer<Planes>, integer<Fields>, floats}};

}  // namespace

const RivalKernels& avx512_rivals() { return kRivals; }

}  // namespace headway::lut
