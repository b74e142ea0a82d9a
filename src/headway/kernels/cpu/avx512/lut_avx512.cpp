// LUT-GEMM for AVX-512 without VBMI: the narrow layout of AVX2, two of its lines at a time.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: its own _mm512_undefined_epi32
#endif
#include <immintrin.h>

#include "../lut.h"

namespace headway::lut {
namespace {

// 16-bit sums. `pairs`: rows 0..7 in the two low lanes, 8..15 in the two high ones; `low`, `high`: rows 0..7 and
// 8..15 of single planes, in every lane.
struct Words {
  __m512i pairs, low, high;
};

inline __m512i weights(int even, int odd) { return _mm512_set1_epi16(short(even | (odd << 8))); }

inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

inline __m512i load_two(const void* first, const void* second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load(first)), load(second), 1);
}

inline void add(__m512i& to, __m512i weight, __m512i entries) {
  to = _mm512_add_epi16(to, _mm512_maddubs_epi16(weight, entries));
}

inline __m512 group_floats(bool half, const uint8_t* at) {
  return half ? _mm512_cvtph_ps(load(at)) : _mm512_loadu_ps(at);
}

template <int Q, bool UNIFORM, int N>
inline void add_block(const uint8_t* at, const int8_t* entries, int64_t stride, Words words[N][UNIFORM ? 1 : Q]) {
  constexpr int kPaired = UNIFORM ? Q / 2 * 2 : 0;
  const __m512i mask = _mm512_set1_epi8(15);
  for (int line = 0; line < Q; ++line) _mm_prefetch(at + 64 * line + kAhead, _MM_HINT_T0);
  for (int s = 0; s < 2; ++s)
    for (int line = 0; line < kPaired; line += 2) {
      const __m512i v = _mm512_loadu_si512(at + 32 * (s * Q + line)), weight = weights(1 << line, 2 << line);
      const __m512i first = _mm512_and_si512(v, mask), second = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
      for (int n = 0; n < N; ++n) {
        const int8_t* table = entries + n * stride + 64 * s;
        add(words[n][0].pairs, weight, _mm512_shuffle_epi8(_mm512_broadcast_i64x4(load(table)), first));
        add(words[n][0].pairs, weight, _mm512_shuffle_epi8(_mm512_broadcast_i64x4(load(table + 32)), second));
      }
    }
  for (int line = kPaired; line < Q; ++line) {
    const __m512i v = load_two(at + 32 * line, at + 32 * (Q + line));
    const __m512i first = _mm512_and_si512(v, mask), second = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
    const int one = UNIFORM ? 1 << (Q - 1) : 1;
    for (int n = 0; n < N; ++n) {
      const int8_t* table = entries + n * stride;
      const __m512i a = _mm512_shuffle_epi8(load_two(table, table + 64), first);
      const __m512i b = _mm512_shuffle_epi8(load_two(table + 32, table + 96), second);
      Words& to = words[n][UNIFORM ? 0 : line];
      add(to.low, weights(one, one), _mm512_unpacklo_epi8(a, b));
      add(to.high, weights(one, one), _mm512_unpackhi_epi8(a, b));
    }
  }
}

inline __m256i fold(__m512i v) { return _mm256_add_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }

inline __m128i fold(__m256i v) { return _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }

// Rows 0..15 of a segment.
inline __m512 to_float(const Words& words, __m512i start) {
  const __m256i low = _mm256_add_epi16(_mm512_castsi512_si256(words.pairs), fold(words.low));
  const __m256i high = _mm256_add_epi16(_mm512_extracti64x4_epi64(words.pairs, 1), fold(words.high));
  const __m256i rows = _mm256_inserti128_si256(_mm256_castsi128_si256(fold(low)), fold(high), 1);
  return _mm512_cvtepi32_ps(_mm512_add_epi32(start, _mm512_cvtepi16_epi32(rows)));
}

// One tile times N rows of activations.
template <int Q, bool UNIFORM, int N>
void tile_rows(const View& w, const Tables& x, int64_t tile, int64_t row, float* y, int64_t ldy) {
  constexpr int kSums = UNIFORM ? 1 : Q;
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int8_t* entries = x.entries + row * x.entry_stride;
  const Segment* segments = x.segments + row * x.segment_stride;
  const int64_t floats = w.half ? 32 : 64;
  __m512 acc[N];
  for (int n = 0; n < N; ++n) acc[n] = _mm512_setzero_ps();
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t group_end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    __m512 part[N][kSums], sum[N];
    for (int n = 0; n < N; ++n) {
      sum[n] = _mm512_setzero_ps();
      for (int i = 0; i < kSums; ++i) part[n][i] = _mm512_setzero_ps();
    }
    do {
      const int64_t end = block + x.segment_blocks < group_end ? block + x.segment_blocks : group_end;
      Words words[N][kSums];
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < kSums; ++i)
          words[n][i].pairs = words[n][i].low = words[n][i].high = _mm512_setzero_si512();
      for (; block < end; ++block, at += 64 * Q, entries += kTableBytes)
        add_block<Q, UNIFORM, N>(at, entries, x.entry_stride, words);
      for (int n = 0; n < N; ++n) {
        const Segment& segment = segments[n * x.segment_stride];
        const __m512 scale = _mm512_set1_ps(segment.scale);
        const __m512i start = UNIFORM ? _mm512_set1_epi32(segment.start[Q - 1]) : _mm512_setzero_si512();
        for (int i = 0; i < kSums; ++i) part[n][i] = _mm512_fmadd_ps(to_float(words[n][i], start), scale, part[n][i]);
        sum[n] = _mm512_add_ps(sum[n], _mm512_set1_ps(segment.sum));
      }
      ++segments;
    } while (block < group_end);
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    for (int i = 0; i <= kSums; ++i, at += floats) {
      __m512 value = group_floats(w.half, at);
      if (!UNIFORM && i < kSums) value = _mm512_add_ps(value, value);
      for (int n = 0; n < N; ++n) acc[n] = _mm512_fmadd_ps(value, i < kSums ? part[n][i] : sum[n], acc[n]);
    }
  }
  const int64_t left = w.out - tile * kRows;
  const __mmask16 rows = left >= kRows ? 0xffff : __mmask16((1u << left) - 1);
  for (int n = 0; n < N; ++n) _mm512_mask_storeu_ps(y + (row + n) * ldy + tile * kRows, rows, acc[n]);
}

template <int Q, bool UNIFORM>
void all_rows(const View& w, const Tables& x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t row = 0;
    for (; row + 2 <= x.rows; row += 2) tile_rows<Q, UNIFORM, 2>(w, x, tile, row, y, ldy);
    if (row < x.rows) tile_rows<Q, UNIFORM, 1>(w, x, tile, row, y, ldy);
  }
}

void matmul(const View& w, const Tables& x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  switch (2 * w.bits + w.uniform) {
    case 2: return all_rows<1, false>(w, x, y, ldy, begin, end);
    case 3: return all_rows<1, true>(w, x, y, ldy, begin, end);
    case 4: return all_rows<2, false>(w, x, y, ldy, begin, end);
    case 5: return all_rows<2, true>(w, x, y, ldy, begin, end);
    case 6: return all_rows<3, false>(w, x, y, ldy, begin, end);
    case 7: return all_rows<3, true>(w, x, y, ldy, begin, end);
    case 8: return all_rows<4, false>(w, x, y, ldy, begin, end);
    case 9: return all_rows<4, true>(w, x, y, ldy, begin, end);
  }
}

}  // namespace

const Kernels& avx512_kernels() {
  static const Kernels kernels = {"avx512", false, matmul, avx2_kernels().codes, avx2_kernels().build};
  return kernels;
}

}  // namespace headway::lut
