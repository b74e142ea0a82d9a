// Integer products of any widths from single bits (bipolar-INT, arXiv 2409.17870): what the kernels share.
//
// An n-bit code u stands for V = 2u - (2^n - 1), an odd integer: every bit is worth +-2^i, all planes alike. For W of
// n bits and X of m bits, and K columns that share their scales,
//   sum_k V_w V_x = K (2^n - 1)(2^m - 1) - 2 sum_ij 2^(i+j) popcount(w_i ^ x_j)
// The same integer comes from int8 products of recovered codes, so a weight may go either way, by what is faster
// here, and gives the same bits:
//   count     per 16 rows x 32 columns and pair of planes: xor (the activation word is broadcast), popcount, and a dot
//             product that weights by 2^j and adds; planes of the weight by Horner's rule: 3 operations on 512 bits
//             (VPOPCNTDQ), 8.5 on 256 bits (AVX2, nibble table). Operations grow with n m, nothing else does.
//   recover   planes to bytes by 15 (n = 1) to 48 (n = 8) operations per 16 rows x 32 columns, once per tile (for
//             one row in registers); then 8 dot products of 64 codes per activation row, for every m.
// Measured on one core (Zen 5), weights in L2:
//   16 rows, one scale per row and token: counting reaches 0.71 (W1A1) to 0.9 of what the same three operations do on
//   registers alone, 2.9 Tbit/s; AVX2 0.78 to 0.9 of 0.55. Segments of 64 columns add 1 ns per tile and row each.
//   One row, segments of 64, a million weights: counting 4 us and 0.6 to 1 us more per pair of planes; recovering 7 us
//   (n = 1) to 17 us (n = 8); AVX2 7 and 2.3, and 14 to 67. Rounding K = 576 activations takes 0.4 us, with the search of
//   scales 1.0.
// Either way integers stay in registers until the float result of a segment is added to its row's sum.
//
// The packed weight is one linear stream: tile of 16 rows; group; header of 16 scales, then 16 offsets if it has any,
// f16 or f32; blocks of 32 columns; plane: a 64-byte line. Dword r of a line is row r, its bit 8c + q is column 4q + c
// (c = 0..3, q = 0..7): a byte holds what one byte lane of an int8 product needs. Bits beyond the last column are 0 in
// weights and activations, so xor gives nothing there. Bytes per weight: n / 8 + 2 / group (f16, no offset).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway::bipolar {

constexpr int64_t kRows = 16;
constexpr int64_t kColumns = 32;
constexpr int64_t kSegmentBlocks = 1024; // at most; 32768 x 255 x 255 < 2^31
constexpr int64_t kAhead = 8192;         // bytes fetched ahead of their use, as in lut.h

// A packed weight as its kernel sees it.
struct View {
  const uint8_t* data;
  int64_t tile_bytes;      // from one tile to the next
  int64_t out, in;
  int64_t blocks;          // of all columns, the last may be short
  int64_t group_blocks;    // that share a scale of the weight; the last group may have fewer
  int64_t segment_blocks;  // that share all scales: no segment crosses a group of the weight or of the activations
  int bits;                // n, 1..8
  bool half;               // header in f16
  bool offset;             // value = scale V + offset
};

// How activations are quantised. Columns are first turned by Hadamard matrices of `rotate` columns (0: not), the last
// columns by smaller ones of the powers of two that add up to their number.
struct Quantiser {
  int64_t in;
  int64_t group_blocks;    // that share a scale
  int64_t segment_blocks;
  int64_t rotate;
  int bits;                // m, 1..8
  bool clip;               // the best of 6 scales, 1.0 to 0.5 of the largest, by squared error; for 2 to 4 bits
  bool planes;             // bits for `count`, else bytes for `recover`
};

// Quantised activations.
//   planes   dword [block][row][m]
//   bytes    int8 [block][8 quads][row][4]: V, or u - 128 = (V - 1) / 2 for m = 8; 0 beyond the last column
//   meta     4 B [segment][3][row]: float scale (NaN where an activation of its group is not finite, 0 where all are
//            0); int32 sum of the bytes; float scale x sum of V
struct Activations {
  const void* codes;
  const char* meta;
  int64_t rows;
  int bits;
};

struct Kernels {
  const char* name;
  // y[row * ldy + o] for the rows o of tiles [begin, end); where `exact` is given, there the integers sum_k V_w V_x over
  // all columns instead. `scratch`: recover_scratch bytes, for `recover`.
  using Product = void (*)(const View& w, const Activations& x, float* y, int64_t* exact, int64_t ldy, int64_t begin,
                           int64_t end, void* scratch);
  Product count, recover;
  // Columns [begin, end) of all rows, multiples of a group and of `rotate`. `turned`: room for round_up(in, 32) floats.
  void (*quantise)(const Quantiser& how, const float* x, int64_t ldx, int64_t rows, int64_t begin, int64_t end,
                   void* codes, char* meta, float* turned);
  // x of n columns (a power of two, at most 2^12) times the Hadamard matrix, each first multiplied by `by`.
  void (*turn)(float* x, int64_t n, float by);
  // xor, popcount and weighted sum on registers alone: the roof of `count`. Gives the bits counted.
  int64_t (*roof)(int64_t rounds);
};

static inline size_t recover_scratch(int64_t blocks, int64_t segment_blocks) {
  return (size_t)blocks * 512 + (size_t)((blocks + segment_blocks - 1) / segment_blocks) * 64;
}

const Kernels& portable_kernels();
#if HEADWAY_X86
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& vpopcntdq_kernels();
#endif

}  // namespace headway::bipolar
