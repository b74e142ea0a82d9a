// 8-bit weights against 16-bit activations (W8A16), for products of many rows that follow one another without a norm in
// between, as convolutions do: there 8-bit activations add to the error of the weights, 16-bit ones do not. One table
// per instruction set, the same bits from each. Plain C types only.
//
// Activations: a row is a pixel, with its own scale sx = max|x| / 32767.
//   int16  [row][cols], then at a multiple of 64 bytes
//   f32    [row] sx; NaN if anything in the row is not finite, 0 if all is smaller than 2^-100
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

namespace headway {

constexpr int64_t kW8a16Columns = 256;  // at most so many are summed as integers: 2^8 x 2^8 x 2^15 is below 2^31
static inline size_t w8a16_codes_bytes(int64_t rows, int64_t cols) {
  return ((size_t)rows * (size_t)cols * 2 + 63) / 64 * 64;
}
static inline size_t w8a16_bytes(int64_t rows, int64_t cols) {
  return w8a16_codes_bytes(rows, cols) + (size_t)rows * 4;
}
// A tile as the kernel reads it: int16 [pair of columns][16 rows][2], then the scales, [sum of integers][16 rows].
static inline size_t w8a16_scratch_bytes(int64_t cols) { return (size_t)cols * 32 + (size_t)(cols / 32) * 64; }

struct W8a16Kernels {
  void (*quantise)(const float* x, int64_t ldx, int64_t rows, int64_t cols, void* out);
  // Tiles of 8 bits without minima, in groups of 32 n columns, of which the first `cols` count. `finish` may be null.
  void (*multiply)(const IntTiles* w, int64_t cols, const void* acts, int64_t rows, float* y, int64_t ldy,
                   int64_t tile_begin, int64_t tile_end, void* scratch, const Finish* finish);
};

extern const W8a16Kernels w8a16_portable;
#if HEADWAY_X86
extern const W8a16Kernels w8a16_avx2;
extern const W8a16Kernels w8a16_avx512;
#endif

}  // namespace headway
