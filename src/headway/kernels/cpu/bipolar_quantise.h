// Activations to bits or bytes (bipolar.h): turned, scaled per group, rounded to the nearest odd level. Included after a
// level's simd.h. All sums and butterflies run in the same order at every level.
//
// Per row and 64 columns turned by 64: 60 vector operations of 16 lanes; absmax, rounding and packing 60; the search of
// 6 scales 200.
#pragma once
#include "bipolar.h"

namespace headway::bipolar {
namespace {

constexpr int kClips = 6;

// One stage inside vectors: lane l becomes x[l] + x[l ^ H] where bit H of l is clear, else x[l ^ H] - x[l].
template <int H> HEADWAY_INLINE F butterfly(F x) {
  const F sign = where_less(iota() & set1i(H), set1i(1), set1(1.0f), set1(-1.0f));
  return fma(x, sign, swap<H>(x));
}

static void turn(float* x, int64_t n, float by) {
  if (n < 16) {
    for (int64_t i = 0; i < n; ++i) x[i] *= by;
    for (int64_t h = 1; h < n; h *= 2)
      for (int64_t i = 0; i < n; ++i)
        if (!(i & h)) {
          const float a = x[i], b = x[i + h];
          x[i] = a + b;
          x[i + h] = a - b;
        }
    return;
  }
  for (int64_t i = 0; i < n; i += 16)
    store(x + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + i) * set1(by))))));
  for (int64_t h = 16; h < n; h *= 2)
    for (int64_t i = 0; i < n; i += 16)
      if (!(i & h)) {
        const F a = load(x + i), b = load(x + i + h);
        store(x + i, a + b);
        store(x + i + h, a - b);
      }
}

// 2^-floor(log2(n) / 2); the weight has the rest of 1 / n.
HEADWAY_INLINE float share_of(int64_t n) {
  float by = 1.0f;
  for (; n >= 4; n /= 4) by *= 0.5f;
  return by;
}

// Columns [begin, end) of a row: the true ones turned, zeros behind them.
HEADWAY_INLINE void turn_columns(const Quantiser& how, const float* x, int64_t begin, int64_t end, float* to) {
  const int64_t last = end < how.in ? end : how.in;
  for (int64_t c = begin; c < end; c += 16) store(to + c, load(x + c));
  for (int64_t c = begin; c < last;) {
    int64_t n = how.rotate;
    while (n > last - c) n /= 2;
    turn(to + c, n, share_of(n));
    c += n;
  }
}

HEADWAY_INLINE F inside(int64_t columns, F x) { return where_less(iota(), set1i((int32_t)columns), x, zero()); }

HEADWAY_INLINE F level_of(F x, F inverse, F half, F top) {
  return to_float(to_int(min(max(x * inverse + half, zero()), top)));
}

// The scale of a group of `columns` columns, and half its inverse (0: all codes are 0).
static float scale_of(const Quantiser& how, const float* x, int64_t columns, float* half_inverse) {
  const I magnitude = set1i(0x7fffffff);
  I highest_bits = set1i(0);
  F total = zero();
  for (int64_t c = 0; c < columns; c += 16) {  // zeros behind the last column
    const I size = bits(load(x + c)) & magnitude;
    highest_bits = max(highest_bits, size);
    total = total + from_bits(size);
  }
  const int32_t top = highest(highest_bits);
  *half_inverse = 0.0f;
  if (top >= 0x7f800000) return __builtin_nanf("");
  if (top < 0x0d800000) return 0.0f;  // 2^-100: nothing
  float largest;
  __builtin_memcpy(&largest, &top, 4);
  const float levels = (float)((1 << how.bits) - 1);
  float scale = how.bits == 1 ? sum(total) / (float)columns : largest / levels;
  if (how.clip && how.bits > 1 && how.bits <= 4) {
    float clips[kClips];
    F lost[kClips], inverses[kClips], steps[kClips];
    for (int k = 0; k < kClips; ++k) {
      clips[k] = scale * (1.0f - 0.1f * (float)k);
      lost[k] = zero();
      inverses[k] = set1(0.5f / clips[k]);
      steps[k] = set1(clips[k]);
    }
    const F half = set1(0.5f * levels), most = set1(levels);
    for (int64_t c = 0; c < columns; c += 16) {
      const F v = load(x + c);
      for (int k = 0; k < kClips; ++k) {
        const F level = level_of(v, inverses[k], half, most);
        F error = v - steps[k] * (level + level - most);
        if (columns - c < 16) error = inside(columns - c, error);
        lost[k] = fma(error, error, lost[k]);
      }
    }
    float least = 3.4e38f;
    for (int k = 0; k < kClips; ++k) {
      const float here = sum(lost[k]);
      if (here < least) {
        least = here;
        scale = clips[k];
      }
    }
  }
  *half_inverse = 0.5f / scale;
  return scale;
}

// 32 codes in column order -> one word per plane: bit 8c + q is column 4q + c.
HEADWAY_INLINE void plane_words(const uint8_t* codes, int bits, uint32_t* to) {
  uint32_t quads[8];
  __builtin_memcpy(quads, codes, 32);
  for (int i = 0; i < bits; ++i) {
    uint32_t word = 0;
    for (int q = 0; q < 8; ++q) word |= (quads[q] >> i & 0x01010101u) << q;
    to[i] = word;
  }
}

static void quantise(const Quantiser& how, const float* x, int64_t ldx, int64_t rows, int64_t begin, int64_t end,
                     void* codes, char* meta, float* turned) {
  const int64_t group = how.group_blocks * kColumns, segment = how.segment_blocks * kColumns;
  const float levels = (float)((1 << how.bits) - 1);
  const int top = (1 << how.bits) - 1, middle = how.bits == 8 ? 128 : 0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * ldx;
    if (how.rotate) {
      turn_columns(how, from, begin, end, turned);
      from = turned;
    }
    for (int64_t first = begin; first < end; first += group) {
      const int64_t stop = end - first < group ? end : first + group;
      const int64_t last = stop < how.in ? stop : how.in;  // past the true columns
      float half_inverse;
      const float scale = scale_of(how, from + first, last - first, &half_inverse);
      const F inverse = set1(half_inverse), half = set1(0.5f * levels), most = set1(levels);
      for (int64_t s = first; s < stop; s += segment) {
        const int64_t segment_end = stop - s < segment ? stop : s + segment;
        I totals = set1i(0);
        for (int64_t c = s; c < segment_end; c += kColumns) {
          alignas(16) uint8_t line[kColumns];
          for (int v = 0; v < 32; v += 16) {
            I code = to_int(level_of(load(from + c + v), inverse, half, most));
            if (last - c - v < 16) code = to_int(inside(last - c - v, to_float(code)));
            totals = totals + code;
            store_i8((int8_t*)line + v, code);
          }
          const int64_t block = c / kColumns;
          if (how.planes) {
            plane_words(line, how.bits, (uint32_t*)codes + (block * rows + r) * how.bits);
            continue;
          }
          const int64_t n = last - c < kColumns ? last - c : kColumns;
          for (int64_t k = 0; k < n; ++k) line[k] = (uint8_t)(middle ? line[k] - middle : 2 * line[k] - top);
          int8_t* to = (int8_t*)codes + block * 32 * rows;
          for (int q = 0; q < 8; ++q) __builtin_memcpy(to + (q * rows + r) * 4, line + 4 * q, 4);
        }
        const int64_t true_end = segment_end < last ? segment_end : last;
        const int32_t total = sum(totals), n = (int32_t)(true_end - s), values = 2 * total - top * n;
        const int32_t sum_of_bytes = middle ? total - middle * n : values;
        const float own = scale * (float)values;
        char* at = meta + (s / segment * 3 * rows + r) * 4;
        __builtin_memcpy(at, &scale, 4);
        __builtin_memcpy(at + 4 * rows, &sum_of_bytes, 4);
        __builtin_memcpy(at + 8 * rows, &own, 4);
      }
    }
  }
}

}  // namespace
}  // namespace headway::bipolar

#define HEADWAY_BIPOLAR(function, label)                                                                     \
  namespace headway::bipolar {                                                                               \
  const Kernels& function() {                                                                                \
    static const Kernels kernels = {label, count, recover, quantise, turn, roof};                            \
    return kernels;                                                                                          \
  }                                                                                                          \
  }
