// Between the stored form of a bit-plane weight (plain planes, the same everywhere) and a kernel's layout (lut.h).
#pragma once
#include <cstddef>
#include <cstdint>

#include "lut.h"

namespace headway::lut {

// A weight as it is stored. Bit c of a row's plane is bit c % 8 of byte c / 8.
struct Stored {
  int64_t out, in, group;
  int bits;
  bool uniform, half;
  const uint8_t* planes;  // [bits][out][(in + 7) / 8]
  const void* scales;     // [1 or bits][out][groups]: f16 if `half`, else f32
  const void* offsets;    // [out][groups]

  int64_t groups() const { return (in + group - 1) / group; }
  int64_t planes_apart() const { return uniform ? 1 : bits; }
};

// Columns after padding each group to whole blocks: column `c` of group k becomes k * padded_group() + c - k * group.
struct Padding {
  int64_t in, group;
  int64_t padded_group() const { return (group < in ? group + 31 : in + 31) / 32 * 32; }
  int64_t blocks() const {
    const int64_t last = (in + group - 1) / group - 1;
    return last * (padded_group() / 32) + (in - last * group + 31) / 32;
  }
};

View view_of(const Stored& w);  // `data` still null
size_t packed_bytes(const View& w);
// One tile of 16 rows, into its place in `out`, which holds packed_bytes zeros.
void pack(const Stored& w, bool wide, const View& view, int64_t tile, uint8_t* out);

}  // namespace headway::lut
