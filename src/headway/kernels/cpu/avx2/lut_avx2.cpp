// LUT-GEMM for AVX2: the narrow layout, one table per 128-bit lane. Per 32 look-ups 0.5 loads, 1.5 operations to
// extract the index, a shuffle, and 2 (planes in pairs) or 3 (single planes) to weight, widen and add. int16 holds a
// segment: 8 quads a lane x 127 x 15 = 15,240.
#include <immintrin.h>

#include "../lut.h"

namespace headway::lut {
namespace {

struct Words {
  __m256i low, high;  // 16-bit sums of rows 0..7 and 8..15, to be added over the two lanes
};

inline __m256i weights(int even, int odd) { return _mm256_set1_epi16(short(even | (odd << 8))); }

inline __m256i look_up(const int8_t* table, __m256i index) {
  return _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)), index);
}

inline void add(__m256i& to, __m256i weight, __m256i entries) {
  to = _mm256_add_epi16(to, _mm256_maddubs_epi16(weight, entries));
}

inline __m256 to_float(__m256i words, __m256i start) {
  const __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(start, _mm256_cvtepi16_epi32(sum)));
}

inline __m256 group_floats(bool half, const uint8_t* at) {
  return half ? _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)))
              : _mm256_loadu_ps(reinterpret_cast<const float*>(at));
}

inline void store(float* y, int64_t rows, __m256 low, __m256 high) {
  if (rows >= kRows) {
    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
    return;
  }
  alignas(32) float all[kRows];
  _mm256_store_ps(all, low);
  _mm256_store_ps(all + 8, high);
  for (int64_t r = 0; r < rows; ++r) y[r] = all[r];
}

// 16-bit sums of a block, added to `words`: [row of activations][sum].
template <int Q, bool UNIFORM, int N>
inline void add_block(const uint8_t* at, const int8_t* entries, int64_t stride, Words words[N][UNIFORM ? 1 : Q]) {
  constexpr int kPaired = UNIFORM ? Q / 2 * 2 : 0;
  const __m256i mask = _mm256_set1_epi8(15);
  for (int line = 0; line < Q; ++line) _mm_prefetch(at + 64 * line + kAhead, _MM_HINT_T0);
  for (int s = 0; s < 2; ++s)
    for (int line = 0; line < Q; ++line) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * (s * Q + line)));
      const __m256i first = _mm256_and_si256(v, mask), second = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
      for (int n = 0; n < N; ++n) {
        const int8_t* table = entries + n * stride + 64 * s;
        const __m256i a = look_up(table, first), b = look_up(table + 32, second);
        if (line < kPaired) {
          const __m256i weight = weights(1 << (line & ~1), 2 << (line & ~1));
          __m256i& to = line & 1 ? words[n][0].high : words[n][0].low;
          add(to, weight, a);
          add(to, weight, b);
        } else {
          const int one = UNIFORM ? 1 << (Q - 1) : 1;
          Words& to = words[n][UNIFORM ? 0 : line];  // the two quads of a byte side by side
          add(to.low, weights(one, one), _mm256_unpacklo_epi8(a, b));
          add(to.high, weights(one, one), _mm256_unpackhi_epi8(a, b));
        }
      }
    }
}

// One tile times N rows of activations.
template <int Q, bool UNIFORM, int N>
void tile_rows(const View& w, const Tables& x, int64_t tile, int64_t row, float* y, int64_t ldy) {
  constexpr int kSums = UNIFORM ? 1 : Q;
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int8_t* entries = x.entries + row * x.entry_stride;
  const Segment* segments = x.segments + row * x.segment_stride;
  const int64_t floats = w.half ? 16 : 32;
  __m256 acc[N][2];
  for (int n = 0; n < N; ++n) acc[n][0] = acc[n][1] = _mm256_setzero_ps();
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t group_end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    __m256 part[N][kSums][2], sum[N];
    for (int n = 0; n < N; ++n) {
      sum[n] = _mm256_setzero_ps();
      for (int i = 0; i < kSums; ++i) part[n][i][0] = part[n][i][1] = _mm256_setzero_ps();
    }
    do {
      const int64_t end = block + x.segment_blocks < group_end ? block + x.segment_blocks : group_end;
      Words words[N][kSums];
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < kSums; ++i) words[n][i].low = words[n][i].high = _mm256_setzero_si256();
      for (; block < end; ++block, at += 64 * Q, entries += kTableBytes)
        add_block<Q, UNIFORM, N>(at, entries, x.entry_stride, words);
      for (int n = 0; n < N; ++n) {
        const Segment& segment = segments[n * x.segment_stride];
        const __m256 scale = _mm256_broadcast_ss(&segment.scale);
        const __m256i start = UNIFORM ? _mm256_set1_epi32(segment.start[Q - 1]) : _mm256_setzero_si256();
        for (int i = 0; i < kSums; ++i) {
          part[n][i][0] = _mm256_fmadd_ps(to_float(words[n][i].low, start), scale, part[n][i][0]);
          part[n][i][1] = _mm256_fmadd_ps(to_float(words[n][i].high, start), scale, part[n][i][1]);
        }
        sum[n] = _mm256_add_ps(sum[n], _mm256_broadcast_ss(&segment.sum));
      }
      ++segments;
    } while (block < group_end);
    _mm_prefetch(at + kAhead, _MM_HINT_T0);
    for (int i = 0; i <= kSums; ++i)
      for (int h = 0; h < 2; ++h, at += floats) {
        __m256 value = group_floats(w.half, at);
        if (!UNIFORM && i < kSums) value = _mm256_add_ps(value, value);
        for (int n = 0; n < N; ++n) acc[n][h] = _mm256_fmadd_ps(value, i < kSums ? part[n][i][h] : sum[n], acc[n][h]);
      }
  }
  for (int n = 0; n < N; ++n)
    store(y + (row + n) * ldy + tile * kRows, w.out - tile * kRows, acc[n][0], acc[n][1]);
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

// The four columns of a quad, for eight rows: byte `from` of each 32-bit lane holds a quad's bits at `shift`; byte t of
// the lane becomes `bit` where the bit of column t is set.
inline __m256i spread(__m256i rows, int from, int shift, int bit) {
  const __m128i lanes = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
  const __m256i every = _mm256_add_epi8(_mm256_broadcastsi128_si256(lanes), _mm256_set1_epi8(char(from)));
  const __m256i columns = _mm256_slli_epi32(_mm256_set1_epi32(0x08040201), shift);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(rows, every), columns), columns);
  return _mm256_and_si256(set, _mm256_set1_epi8(char(bit)));
}

template <int Q> inline void block_codes(const uint8_t* at, uint8_t* out) {
  for (int quad = 0; quad < 4; ++quad)
    for (int h = 0; h < 2; ++h) {
      __m256i codes = _mm256_setzero_si256();
      for (int s = 0; s < 2; ++s) {  // columns 0..15 to the low halves, 16..31 to the high ones
        const uint8_t* lines = at + 32 * Q * s + 16 * (quad & 1);
        for (int plane = 0; plane < Q / 2 * 2; plane += 2) {
          const auto* pairs = reinterpret_cast<const __m128i*>(lines + 32 * (plane + h));
          const __m256i rows = _mm256_cvtepu16_epi32(_mm_loadu_si128(pairs));
          codes = _mm256_or_si256(codes, spread(rows, 0, 4 * (quad >> 1), 1 << (plane + 4 * s)));
          codes = _mm256_or_si256(codes, spread(rows, 1, 4 * (quad >> 1), 2 << (plane + 4 * s)));
        }
        if (Q % 2) {
          const auto* single = reinterpret_cast<const __m128i*>(lines + 32 * (Q - 1) + 8 * h);
          const __m256i rows = _mm256_cvtepu8_epi32(_mm_loadl_epi64(single));
          codes = _mm256_or_si256(codes, spread(rows, 0, 4 * (quad >> 1), 1 << (Q - 1 + 4 * s)));
        }
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 * quad + 32 * h), codes);
    }
}

template <int Q> void tile_codes(const View& w, int64_t tile, uint8_t* out) {
  const uint8_t* at = w.data + tile * w.tile_bytes;
  const int64_t floats = 2 * kRows * (w.half ? 2 : 4);
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    __builtin_memcpy(out, at + (end - block) * 64 * Q, size_t(floats));
    out += floats;
    for (; block < end; ++block, at += 64 * Q, out += 256) block_codes<Q>(at, out);
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

// Eight quads as four vectors: v[i] lane q = activation i of quad q.
inline void transpose(const float* x, __m256 v[4]) {
  const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8), c = _mm256_loadu_ps(x + 16),
               d = _mm256_loadu_ps(x + 24);
  const __m256 a1 = _mm256_permute2f128_ps(a, c, 0x20), b1 = _mm256_permute2f128_ps(a, c, 0x31),  // quads 0 4, 1 5
      c1 = _mm256_permute2f128_ps(b, d, 0x20), d1 = _mm256_permute2f128_ps(b, d, 0x31);          // quads 2 6, 3 7
  const __m256 low01 = _mm256_unpacklo_ps(a1, b1), high01 = _mm256_unpackhi_ps(a1, b1);
  const __m256 low23 = _mm256_unpacklo_ps(c1, d1), high23 = _mm256_unpackhi_ps(c1, d1);
  v[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  v[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  v[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  v[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}

inline float fold(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float largest_of(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Four vectors of 32-bit integers (entry j + i of quads 0..7) to bytes: dword q of the result = entries j..j+3 of it.
inline __m256i pack(__m256i a, __m256i b, __m256i c, __m256i d) {
  return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}

// Half of a block's tables: 16 bytes per quad, quads q and 4 + q in the lanes of vector q.
inline void write_tables(const __m256 v[4], float inverse, int8_t* to) {
  const __m256i forward =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i reverse =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3));
  const __m256 scale = _mm256_set1_ps(inverse);
  const __m256 p = _mm256_add_ps(v[0], v[1]), m = _mm256_sub_ps(v[1], v[0]);
  const __m256 p2 = _mm256_add_ps(v[2], v[3]), m2 = _mm256_sub_ps(v[3], v[2]);
  const auto entry = [&](__m256 a, __m256 b) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_add_ps(a, b), scale)); };
  const __m256 zero = _mm256_setzero_ps(), minus_p = _mm256_sub_ps(zero, p), minus_m = _mm256_sub_ps(zero, m);
  const __m256i e8 = pack(entry(minus_p, m2), entry(minus_m, m2), entry(m, m2), entry(p, m2));
  const __m256i e12 = pack(entry(minus_p, p2), entry(minus_m, p2), entry(m, p2), entry(p, p2));
  const __m256i none = _mm256_setzero_si256();
  const __m256i d = _mm256_shuffle_epi8(e12, forward), c = _mm256_shuffle_epi8(e8, forward);   // 12..15, 8..11
  const __m256i b = _mm256_sub_epi8(none, _mm256_shuffle_epi8(e8, reverse));                   // 4..7
  const __m256i a = _mm256_sub_epi8(none, _mm256_shuffle_epi8(e12, reverse));                  // 0..3
  const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  const __m256i quads[4] = {_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
                            _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)};
  for (int q = 0; q < 4; q += 2) {
    __m256i* out = reinterpret_cast<__m256i*>(to + 16 * q);
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(quads[q], quads[q + 1], 0x20));
    _mm256_storeu_si256(out + 2, _mm256_permute2x128_si256(quads[q], quads[q + 1], 0x31));
  }
}

void build(const float* x, int64_t blocks, int64_t segment_blocks, int8_t* entries, Segment* segments) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int64_t begin = 0; begin < blocks; begin += segment_blocks) {
    const int64_t count = segment_blocks < blocks - begin ? segment_blocks : blocks - begin;
    float sum = 0, size = 0, largest = 0;
    __m256 v[2][4];
    for (int64_t i = 0; i < count; ++i) {
      transpose(x + (begin + i) * kColumns, v[i]);
      const __m256 quads = _mm256_add_ps(_mm256_add_ps(v[i][0], v[i][1]), _mm256_add_ps(v[i][2], v[i][3]));
      const __m256 sizes =
          _mm256_add_ps(_mm256_add_ps(_mm256_and_ps(v[i][0], magnitude), _mm256_and_ps(v[i][1], magnitude)),
                        _mm256_add_ps(_mm256_and_ps(v[i][2], magnitude), _mm256_and_ps(v[i][3], magnitude)));
      sum += fold(quads);
      size += fold(sizes);
      const float most = largest_of(sizes);
      largest = most > largest ? most : largest;
    }
    const bool finite = size <= 3.4028234e38f, zero = !(largest > 1e-36f);
    if (finite && !zero)
      for (int64_t i = 0; i < count; ++i)
        write_tables(v[i], 127.0f / largest, entries + (begin + i) * kTableBytes);
    else
      for (int64_t i = begin * kTableBytes; i < (begin + count) * kTableBytes; ++i) entries[i] = 0;
    segments->scale = !finite ? __builtin_nanf("") : zero ? 0.0f : largest / 254.0f;
    segments->sum = sum;
    const float unit = finite && !zero ? sum * (127.0f / largest) : 0.0f;
    for (int bits = 1; bits <= 4; ++bits)
      segments->start[bits - 1] = _mm_cvtss_si32(_mm_set_ss(float((1 << bits) - 1) * unit));
    ++segments;
  }
}

const Kernels kKernels = {"avx2", false, matmul, codes, build};

}  // namespace

const Kernels& avx2_kernels() { return kKernels; }

}  // namespace headway::lut
