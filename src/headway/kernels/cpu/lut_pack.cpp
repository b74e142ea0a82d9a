// Packing of bit planes into the layouts of lut.h.
#include "lut_pack.h"

#include <algorithm>
#include <cstring>

namespace headway::lut {

Place place(bool wide, int bits, bool uniform, int plane, int64_t quad, int64_t row) {
  if (wide) return {64 * plane + 4 * row + (quad & 3), int(quad >> 2) * 4};
  const int paired = uniform ? bits / 2 * 2 : 0;
  const int64_t start = (quad >> 2) * 32 * bits + (quad & 1) * 16;
  const int shift = int((quad >> 1) & 1) * 4;
  if (plane >= paired) return {start + 32 * plane + row, shift};
  const int64_t line = plane / 2 * 2 + row / 8;
  return {start + 32 * line + 2 * (row % 8) + plane % 2, shift};
}

View view_of(const Stored& w) {
  const Padding padding{w.in, w.group};
  View view{nullptr, 0, w.out, padding.blocks(), padding.padded_group() / 32, w.bits, w.uniform, w.half};
  view.tile_bytes = view.blocks * 64 * w.bits + w.groups() * (w.planes_apart() + 1) * kRows * (w.half ? 2 : 4);
  return view;
}

size_t packed_bytes(const View& w) { return size_t((w.out + kRows - 1) / kRows * w.tile_bytes); }

void pack(const Stored& w, bool wide, const View& view, int64_t tile, uint8_t* out) {
  const int64_t row_bytes = (w.in + 7) / 8, groups = w.groups(), size = w.half ? 2 : 4, apart = w.planes_apart();
  const auto* scales = static_cast<const uint8_t*>(w.scales);
  const auto* offsets = static_cast<const uint8_t*>(w.offsets);
  for (int64_t row = tile * kRows; row < std::min(w.out, (tile + 1) * kRows); ++row) {
    uint8_t* at = out + tile * view.tile_bytes;
    const int64_t r = row % kRows;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * w.group, end = std::min(w.in, begin + w.group);
      for (int plane = 0; plane < w.bits; ++plane) {
        const uint8_t* bits = w.planes + (plane * w.out + row) * row_bytes;
        for (int64_t c = begin; c < end; c += 4) {  // groups begin at multiples of 4: a quad lies in one byte
          const int mask = end - c < 4 ? (1 << (end - c)) - 1 : 15;
          const int64_t within = c - begin;
          const Place to = place(wide, w.bits, w.uniform, plane, within % kColumns / 4, r);
          at[within / kColumns * 64 * w.bits + to.byte] |= uint8_t((bits[c / 8] >> (c % 8) & mask) << to.shift);
        }
      }
      at += (end - begin + kColumns - 1) / kColumns * 64 * w.bits;
      for (int64_t i = 0; i < apart; ++i)
        std::memcpy(at + (i * kRows + r) * size, scales + ((i * w.out + row) * groups + group) * size, size_t(size));
      std::memcpy(at + (apart * kRows + r) * size, offsets + (row * groups + group) * size, size_t(size));
      at += (apart + 1) * kRows * size;
    }
  }
}

}  // namespace headway::lut
