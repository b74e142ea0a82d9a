// LUT-GEMM in plain C++: the definition that every other level equals bit for bit.
#include <math.h>
#include <string.h>

#include "../lut.h"

namespace headway::lut {
namespace {

float from_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
  union {
    uint32_t u;
    float f;
  } value{sign | (exponent == 31 ? 0x7f800000u | (fraction << 13) : ((exponent + 112) << 23) | (fraction << 13))};
  return value.f;
}

float group_float(const View& w, const uint8_t* floats, int64_t index) {
  return w.half ? from_half(reinterpret_cast<const uint16_t*>(floats)[index])
                : reinterpret_cast<const float*>(floats)[index];
}

// One tile times one row of activations.
void tile_row(const View& w, const Tables& x, int64_t tile, int64_t row, float* y) {
  const uint8_t* line = w.data + tile * w.tile_bytes;
  const int8_t* entries = x.entries + row * x.entry_stride;
  const Segment* segment = x.segments + row * x.segment_stride;
  const int sums = w.uniform ? 1 : w.bits;  // those that stay apart until the group's end
  float acc[kRows] = {};
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t group_end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    float part[4][kRows] = {};
    float sum = 0;
    for (; block < group_end; ++segment) {
      const int64_t end = block + x.segment_blocks < group_end ? block + x.segment_blocks : group_end;
      int32_t total[4][kRows] = {};
      if (w.uniform)
        for (int32_t& value : total[0]) value = segment->start[w.bits - 1];
      for (; block < end; ++block, entries += kTableBytes)
        for (int plane = 0; plane < w.bits; ++plane, line += 64) {
          int32_t* to = total[w.uniform ? 0 : plane];
          const int weight = w.uniform ? 1 << plane : 1;
          for (int i = 0; i < 64; ++i) {
            const int quad = i & 3;
            to[i >> 2] += weight * (entries[16 * quad + (line[i] & 15)] + entries[64 + 16 * quad + (line[i] >> 4)]);
          }
        }
      for (int i = 0; i < sums; ++i)
        for (int r = 0; r < kRows; ++r) part[i][r] = fmaf(float(total[i][r]), segment->scale, part[i][r]);
      sum += segment->sum;
    }
    for (int i = 0; i < sums; ++i)
      for (int r = 0; r < kRows; ++r) {
        const float scale = group_float(w, line, i * kRows + r);
        acc[r] = fmaf(w.uniform ? scale : scale + scale, part[i][r], acc[r]);
      }
    for (int r = 0; r < kRows; ++r) acc[r] = fmaf(group_float(w, line, sums * kRows + r), sum, acc[r]);
    line += (sums + 1) * kRows * (w.half ? 2 : 4);
  }
  for (int64_t r = 0; r < kRows && tile * kRows + r < w.out; ++r) y[tile * kRows + r] = acc[r];
}

void matmul(const View& w, const Tables& x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile)
    for (int64_t row = 0; row < x.rows; ++row) tile_row(w, x, tile, row, y + row * ldy);
}

void codes(const View& w, int64_t tile, uint8_t* out) {
  const uint8_t* at = w.data + tile * w.tile_bytes;
  for (int64_t block = 0; block < w.blocks;) {
    const int64_t end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
    const int64_t floats = 2 * kRows * (w.half ? 2 : 4);
    memcpy(out, at + (end - block) * 64 * w.bits, size_t(floats));
    out += floats;
    for (; block < end; ++block, at += 64 * w.bits, out += 256) {
      memset(out, 0, 256);
      for (int plane = 0; plane < w.bits; ++plane)
        for (int i = 0; i < 64; ++i)  // line byte 4 r + c: quads c and 4 + c of row r
          for (int t = 0; t < 8; ++t)
            out[(i & 3) * 64 + (i & ~3) + (t & 3)] |= uint8_t((at[64 * plane + i] >> t & 1) << (plane + (t & 4)));
    }
    at += floats;
  }
}

// Sum of eight values in the order in which a 256-bit register folds.
float fold(const float* v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

void build(const float* x, int64_t blocks, int64_t segment_blocks, int8_t* entries, Segment* segments) {
  for (int64_t begin = 0; begin < blocks; begin += segment_blocks) {
    const int64_t end = begin + segment_blocks < blocks ? begin + segment_blocks : blocks;
    float sum = 0, size = 0, largest = 0;
    for (int64_t block = begin; block < end; ++block) {
      float quads[8], sizes[8];
      for (int q = 0; q < 8; ++q) {
        const float* v = x + block * kColumns + 4 * q;
        quads[q] = (v[0] + v[1]) + (v[2] + v[3]);
        sizes[q] = (fabsf(v[0]) + fabsf(v[1])) + (fabsf(v[2]) + fabsf(v[3]));
        if (sizes[q] > largest) largest = sizes[q];
      }
      sum += fold(quads);
      size += fold(sizes);
    }
    const bool finite = size <= 3.4028234e38f, zero = !(largest > 1e-36f);
    const float inverse = finite && !zero ? 127.0f / largest : 0.0f;
    for (int64_t block = begin; block < end; ++block)
      for (int q = 0; q < 8; ++q) {
        const float* v = x + block * kColumns + 4 * q;
        int8_t* to = entries + block * kTableBytes + 16 * q;
        const float low[2] = {v[0] + v[1], v[1] - v[0]}, high[2] = {v[2] + v[3], v[3] - v[2]};
        for (int j = 8; j < 16; ++j) {
          const float a = (j & 2) ? low[!(j & 1)] : -low[j & 1];
          const float b = high[!(j & 4)];
          const int8_t entry = inverse != 0.0f ? int8_t(lrintf((a + b) * inverse)) : 0;
          to[j] = entry;
          to[15 - j] = int8_t(-entry);
        }
      }
    segments->scale = !finite ? NAN : zero ? 0.0f : largest / 254.0f;
    segments->sum = sum;
    for (int bits = 1; bits <= 4; ++bits)
      segments->start[bits - 1] = inverse != 0.0f ? int32_t(lrintf(float((1 << bits) - 1) * (sum * inverse))) : 0;
    ++segments;
  }
}

const Kernels kKernels = {"portable", true, matmul, codes, build};

}  // namespace

const Kernels& portable_kernels() { return kKernels; }

}  // namespace headway::lut
