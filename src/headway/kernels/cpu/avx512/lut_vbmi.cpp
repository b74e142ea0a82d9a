// LUT-GEMM for AVX-512 with VBMI: the wide layout. One register holds the tables of four quads; a byte's index is its
// nibble + 16 x (byte mod 4). Per 64 look-ups 0.5 loads, 1.5 operations to form the index, one `vpermb`, and one
// `vpdpbusd` that weights the plane, adds the four quads of a row and widens to 32 bits.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: its own _mm512_undefined_epi32
#endif
#include <immintrin.h>

#include "../lut.h"

#define VBMI __attribute__((target("avx512vbmi")))

namespace headway::lut {
namespace {

VBMI inline __m512 group_floats(bool half, const uint8_t* at) {
  return half ? _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))) : _mm512_loadu_ps(at);
}

// 32-bit sums of a segment, rows in lanes: [row of activations][sum]. `total` comes with its start.
template <int Q, bool UNIFORM, int N, int BLOCKS>
VBMI inline void add_segment(const uint8_t* at, const int8_t* entries, int64_t stride,
                             __m512i total[N][UNIFORM ? 1 : Q]) {
  constexpr int kSums = UNIFORM ? 1 : Q;
  const __m512i low_half = _mm512_set1_epi8(15), base = _mm512_set1_epi32(0x30201000);
  constexpr bool kTwo = N * kSums < 4;  // few sums: a second chain of each hides the latency of the dot product
  __m512i other[N][kSums];
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < kSums; ++i) other[n][i] = _mm512_setzero_si512();
  for (int block = 0; block < BLOCKS; ++block) {
    __m512i low[N], high[N];
    for (int n = 0; n < N; ++n) {
      low[n] = _mm512_loadu_si512(entries + n * stride + block * kTableBytes);
      high[n] = _mm512_loadu_si512(entries + n * stride + block * kTableBytes + 64);
      asm("" : "+v"(low[n]), "+v"(high[n]));  // loaded once: the load ports are the scarce ones
    }
    for (int plane = 0; plane < Q; ++plane) {
      const uint8_t* line = at + 64 * (block * Q + plane);
      _mm_prefetch(line + kAhead, _MM_HINT_T0);
      __m512i v = _mm512_loadu_si512(line);
      asm("" : "+v"(v));
      const __m512i weight = _mm512_set1_epi8(UNIFORM ? 1 << plane : 1);
      // (v & 15) | base, and the same of the high halves
      const __m512i a = _mm512_ternarylogic_epi32(v, low_half, base, 0xea);
      const __m512i b = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 4), low_half, base, 0xea);
      const int to = UNIFORM ? 0 : plane;
      for (int n = 0; n < N; ++n) {
        total[n][to] = _mm512_dpbusd_epi32(total[n][to], weight, _mm512_permutexvar_epi8(a, low[n]));
        __m512i& second = kTwo ? other[n][to] : total[n][to];
        second = _mm512_dpbusd_epi32(second, weight, _mm512_permutexvar_epi8(b, high[n]));
      }
    }
  }
  for (int n = 0; n < N; ++n)
    for (int i = 0; kTwo && i < kSums; ++i) total[n][i] = _mm512_add_epi32(total[n][i], other[n][i]);
}

VBMI inline void store(float* y, int64_t tile, int64_t out, __m512 acc) {
  const int64_t left = out - tile * kRows;
  _mm512_mask_storeu_ps(y + tile * kRows, left >= kRows ? 0xffff : __mmask16((1u << left) - 1), acc);
}

// One tile times N rows of activations.
template <int Q, bool UNIFORM, int N>
VBMI void tile_rows(const View& w, const Tables& x, int64_t tile, int64_t row, float* y, int64_t ldy) {
  constexpr int kSums = UNIFORM ? 1 : Q;
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int8_t* entries = x.entries + row * x.entry_stride;
  const Segment* segments = x.segments + row * x.segment_stride;
  const int64_t floats = w.half ? 32 : 64;
  __m512 acc[N];
  for (int n = 0; n < N; ++n) acc[n] = _mm512_setzero_ps();
  for (int64_t left = w.blocks; left > 0;) {
    int64_t left_in_group = w.group_blocks < left ? w.group_blocks : left;
    left -= left_in_group;
    __m512 part[N][kSums], sum[N];
    for (int n = 0; n < N; ++n) {
      sum[n] = _mm512_setzero_ps();
      for (int i = 0; i < kSums; ++i) part[n][i] = _mm512_setzero_ps();
    }
    do {
      const int64_t count = left_in_group < x.segment_blocks ? left_in_group : x.segment_blocks;
      __m512i total[N][kSums];
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < kSums; ++i)
          total[n][i] =
              UNIFORM ? _mm512_set1_epi32(segments[n * x.segment_stride].start[Q - 1]) : _mm512_setzero_si512();
      if (count == 2)
        add_segment<Q, UNIFORM, N, 2>(at, entries, x.entry_stride, total);
      else
        add_segment<Q, UNIFORM, N, 1>(at, entries, x.entry_stride, total);
      for (int n = 0; n < N; ++n) {
        const Segment& segment = segments[n * x.segment_stride];
        const __m512 scale = _mm512_set1_ps(segment.scale);
        sum[n] = _mm512_add_ps(sum[n], _mm512_set1_ps(segment.sum));
        for (int i = 0; i < kSums; ++i)
          part[n][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[n][i]), scale, part[n][i]);
      }
      at += count * (Q * 64);
      entries += count * kTableBytes;
      left_in_group -= count;
      ++segments;
    } while (left_in_group > 0);
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    for (int i = 0; i <= kSums; ++i, at += floats) {
      __m512 value = group_floats(w.half, at);
      if (!UNIFORM && i < kSums) value = _mm512_add_ps(value, value);
      for (int n = 0; n < N; ++n) acc[n] = _mm512_fmadd_ps(value, i < kSums ? part[n][i] : sum[n], acc[n]);
    }
  }
  for (int n = 0; n < N; ++n) store(y + (row + n) * ldy, tile, w.out, acc[n]);
}

// The same for one row of activations against a uniform weight whose groups are all SEGMENTS segments of BLOCKS
// blocks: the case of decoding, without the loops. Same operations, same bits.
template <int Q, int BLOCKS, int SEGMENTS>
VBMI void tile_one(const View& w, const Tables& x, int64_t tile, int64_t row, float* y) {
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int8_t* entries = x.entries + row * x.entry_stride;
  const Segment* segments = x.segments + row * x.segment_stride;
  const int64_t floats = w.half ? 32 : 64;
  __m512 acc = _mm512_setzero_ps();
  for (int64_t left = w.blocks; left > 0; left -= SEGMENTS * BLOCKS) {
    __m512 part, sum;
    for (int s = 0; s < SEGMENTS; ++s) {
      __m512i total[1][1] = {{_mm512_set1_epi32(segments[s].start[Q - 1])}};
      add_segment<Q, true, 1, BLOCKS>(at + s * BLOCKS * Q * 64, entries + s * BLOCKS * kTableBytes, 0, total);
      const __m512 value = _mm512_cvtepi32_ps(total[0][0]), scale = _mm512_set1_ps(segments[s].scale);
      part = s == 0 ? _mm512_mul_ps(value, scale) : _mm512_fmadd_ps(value, scale, part);
      sum = s == 0 ? _mm512_set1_ps(segments[s].sum) : _mm512_add_ps(sum, _mm512_set1_ps(segments[s].sum));
    }
    at += SEGMENTS * BLOCKS * Q * 64;
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    acc = _mm512_fmadd_ps(group_floats(w.half, at), part, acc);
    acc = _mm512_fmadd_ps(group_floats(w.half, at + floats), sum, acc);
    at += 2 * floats;
    entries += SEGMENTS * BLOCKS * kTableBytes;
    segments += SEGMENTS;
  }
  store(y, tile, w.out, acc);
}

template <int Q, bool UNIFORM>
void all_rows(const View& w, const Tables& x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  void (*one)(const View&, const Tables&, int64_t, int64_t, float*) = nullptr;
  if constexpr (UNIFORM) {
    const int64_t blocks = x.segment_blocks, segments = w.group_blocks / blocks;
    if (w.blocks % w.group_blocks == 0 && w.group_blocks % blocks == 0) {
      if (segments == 1) one = blocks == 1 ? tile_one<Q, 1, 1> : tile_one<Q, 2, 1>;
      if (segments == 2) one = blocks == 1 ? tile_one<Q, 1, 2> : tile_one<Q, 2, 2>;
      if (segments == 4 && blocks == 1) one = tile_one<Q, 1, 4>;
    }
  }
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t row = 0;
    for (; row + 4 <= x.rows; row += 4) tile_rows<Q, UNIFORM, 4>(w, x, tile, row, y, ldy);
    if (row + 2 <= x.rows) {
      tile_rows<Q, UNIFORM, 2>(w, x, tile, row, y, ldy);
      row += 2;
    }
    if (row == x.rows) continue;
    if (one)
      one(w, x, tile, row, y + row * ldy);
    else
      tile_rows<Q, UNIFORM, 1>(w, x, tile, row, y, ldy);
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

// A line's byte j of row r holds quads j and 4 + j: each nibble picks four bytes from a table of 16.
template <int Q> void tile_codes(const View& w, int64_t tile, uint8_t* out) {
  const __m512i nibbles =
      _mm512_setr_epi32(0, 0x1, 0x100, 0x101, 0x10000, 0x10001, 0x10100, 0x10101, 0x1000000, 0x1000001, 0x1000100,
                        0x1000101, 0x1010000, 0x1010001, 0x1010100, 0x1010101);
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int64_t floats = 2 * kRows * (w.half ? 2 : 4);
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    __builtin_memcpy(out, at + (end - block) * 64 * Q, size_t(floats));
    out += floats;
    for (; block < end; ++block, at += 64 * Q, out += 256)
      for (int quad = 0; quad < 4; ++quad) {
        __m512i codes = _mm512_setzero_si512();
        for (int plane = 0; plane < Q; ++plane) {
          const __m512i v = _mm512_loadu_si512(at + 64 * plane);
          const __m512i low = _mm512_slli_epi32(nibbles, plane), high = _mm512_slli_epi32(nibbles, plane + 4);
          const __m512i first = _mm512_permutexvar_epi32(_mm512_srli_epi32(v, 8 * quad), low);
          const __m512i second = _mm512_permutexvar_epi32(_mm512_srli_epi32(v, 8 * quad + 4), high);
          codes = _mm512_or_si512(codes, _mm512_or_si512(first, second));
        }
        _mm512_storeu_si512(out + 64 * quad, codes);
      }
    at += floats;
  }
}

void codes(const View& w, int64_t tile, uint8_t* out) {
  switch (w.bits) {
    case 1: return tile_codes<1>(w, tile, out);
    case 2: return tile_codes<2>(w, tile, out);
    case 3: return tile_codes<3>(w, tile, out);
    case 4: return tile_codes<4>(w, tile, out);
  }
}

}  // namespace

const Kernels& vbmi_kernels() {
  static const Kernels kernels = {"avx512-vbmi", true, matmul, codes, avx2_kernels().build};
  return kernels;
}

}  // namespace headway::lut
