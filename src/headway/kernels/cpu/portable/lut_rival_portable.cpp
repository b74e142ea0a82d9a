// The rivals in plain C++, one code at a time.
#include "../lut_rival.h"
#include "../packed.h"

namespace headway::lut {

int rival_code(Rival rival, const uint8_t* block, int64_t row, int64_t column) {
  const int64_t quad = column / 4, at = 4 * row + column % 4;
  if (rival == Rival::planes)
    return (block[64 * (quad / 4) + at] >> (2 * (quad % 4)) & 3) | (block[128 + at] >> quad & 1) << 2;
  if (rival == Rival::fields) {
    if (quad < 6) return block[64 * (quad % 3) + at] >> (3 * (quad / 3)) & 7;
    return block[64 * (quad - 6) + at] >> 6 | (block[128 + at] >> quad & 1) << 2;
  }
  uint32_t line[3];
  for (int i = 0; i < 3; ++i) {
    const uint8_t* p = block + 64 * i + 4 * row;
    line[i] = uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
  }
  if (column < 30) return int(line[column / 10] >> (3 * (column % 10)) & 7);
  const uint32_t rest = line[0] >> 30 | line[1] >> 30 << 2 | line[2] >> 30 << 4;
  return int(rest >> (3 * (column - 30)) & 7);
}

namespace {

template <Rival RIVAL> void matmul(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t r = 0; r < 16 && tile * 16 + r < w.out; ++r) {
      const uint8_t* at = w.data + tile * w.tile_bytes;
      float acc = 0;
      for (int64_t block = 0, group = 0; block < w.blocks; ++group) {
        const int64_t group_end = block + w.group_blocks < w.blocks ? block + w.group_blocks : w.blocks;
        int32_t dot = 0;
        float total = 0;
        for (; block < group_end; ++block, at += 192)
          for (int64_t c = 0; c < 32; ++c) {
            const int code = rival_code(RIVAL, at, r, c);
            if (RIVAL == Rival::floats) total += float(code) * x.x[block * 32 + c];
            else dot += code * x.codes[block * 32 + c];
          }
        if (RIVAL != Rival::floats) total = float(dot) * x.scales[group];
        const auto* halves = reinterpret_cast<const uint16_t*>(at);
        acc += float_from_half(halves[r]) * total + float_from_half(halves[16 + r]) * x.sums[group];
        at += 64;
      }
      y[tile * 16 + r] = acc;
    }
  }
}

const RivalKernels kRivals = {{matmul<Rival::planes>, matmul<Rival::fields>, matmul<Rival::floats>}};

}  // namespace

const RivalKernels& portable_rivals() { return kRivals; }

}  // namespace headway::lut
