// The rivals of the look-up kernels: the same 3-bit weights dequantised on the fly, so that the proof compares
// algorithms and not formats. Same bytes, same tiles of 16 rows, floats per group behind the codes; uniform, f16.
//
// A block of 32 columns is three lines of 64 bytes, q0..q7 its eight quads (4 columns):
//   planes   byte 4r + c of line 0: two low bits of q0..q3 (row r, column c of the quad), of line 1: of q4..q7,
//            of line 2: the high bits of q0..q7. Shift and mask to bytes, then integer dot products.
//   fields   byte 4r + c of line i: q_i in bits 0..2, q_(3+i) in bits 3..5; bits 6..7 of lines 0 and 1: the low bits
//            of q6 and q7, of line 2: their high bits. AVX-512 multiplies the fields where they lie and shifts the
//            sums; AVX2 has no room for that in 16 bits and shifts the codes. The strongest rival we know.
//   floats   dword r of line i: columns 10i .. 10i+9 at bit 3k; bits 30..31 of the lines: columns 30 and 31.
//            Each code picks a float with a permute; fused multiply-add with float32 activations.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "lut.h"

namespace headway::lut {

enum class Rival : int { planes = 0, fields = 1, floats = 2 };

struct RivalView {
  const uint8_t* data;
  int64_t tile_bytes, out, blocks, group_blocks;
};

// One row of activations: int8 codes with a scale per group of the weight, and sums per group.
struct RivalActs {
  const float* x;
  const int8_t* codes;
  const float* scales;
  const float* sums;
};

struct RivalKernels {
  // By Rival: y[o] for the rows of tiles [begin, end).
  void (*matmul[3])(const RivalView& w, const RivalActs& x, float* y, int64_t begin, int64_t end);
};

const RivalKernels& portable_rivals();
#if HEADWAY_X86
const RivalKernels& avx2_rivals();
const RivalKernels& avx512_rivals();
#endif

// Code of a row and a column (0..31) in a block.
int rival_code(Rival rival, const uint8_t* block, int64_t row, int64_t column);

}  // namespace headway::lut
