// Making codes: the kernels behind the quantisers, one table per instruction set. Plain C types only.
//
// Everything runs on panels, `rows` rows of W at a time, transposed: [column][rows]. Rows of W never meet, so lanes
// are rows, no sum crosses lanes, and each number is made by the same operations in the same order on every level.
// A grid is affine per group of columns: value = code * scale + minimum, code in 0..levels.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway {

// Scale and minimum of every group by a clip search weighted by h: each candidate range is shrunk from the group's
// own, rounded, refitted by weighted least squares and rounded again; the least sum of h (w - value)^2 wins.
struct FitArgs {
  const float* w;  // [in][rows]
  const float* h;  // [in], not negative
  int64_t in, group;
  int levels;
  int candidates;
  float narrowest;  // the last candidate's share of the range; the first is 1
  float* scale;     // [groups][rows]
  float* minimum;
};

// H = v d v^T with v unit upper triangular, H taken in the order of the pass. Stored back to front: `panels` holds the
// lower triangle of H reversed, kRows columns to a panel, [panel][n rows][rows], and v comes out reversed too.
struct FactorArgs {
  float* panels;  // in: H; out: below the diagonal, v
  int64_t n;
  float least;     // a pivot below this is rounding: it counts as this
  float* scratch;  // kQuantiseBlock (n + rows + kQuantiseBlock) floats
};

// One pass over the columns (GPTQ): each is rounded so that it also makes up for what the columns before it lost.
// The loss is sum_j of (e_j + sum_{i<j} v_ij e_i)^2 times a constant, e = w - value: column j aims at
// w_j + sum_{i<j} v_ij e_i.
struct SweepArgs {
  const float* w;        // [in][rows], columns in the order of the pass
  const float* v;        // [in][in], unit upper triangular
  const int32_t* group;  // [in] group of each column
  const float* scale;    // [groups][rows]; unused where `grid` is set
  const float* minimum;
  const float* grid;     // null, or [groups][levels + 1][rows]: the values themselves, ascending
  int64_t in;
  int levels;
  uint8_t* codes;  // [in][rows]
  float* scratch;  // [in + kQuantiseBlock][rows]
};

// Rounds of: scale and minimum of all groups of a row at once by least squares under H, codes kept; then codes one by
// one, each to the best value given all others. Ends with a fit. The loss is (w - value) H (w - value)^T.
struct RefineArgs {
  const float* w;        // [in][rows]
  const float* h;        // [in][in], symmetric, positive diagonal
  const float* h_sums;   // [in][groups]: sums of a row of h over each group
  int64_t in, group, groups;
  int levels;
  int rounds;
  int half;        // 1: scale and minimum are rounded to float16
  int centred;     // 1: minimum is kept at -scale levels / 2 (not rounded), and scales alone are fitted
  uint8_t* codes;  // [in][rows], in and out
  float* scale;    // [groups][rows], in and out
  float* minimum;
  float* scratch;  // refine_scratch(...) floats
};

constexpr int kQuantiseBlock = 32;  // columns between two updates of all that follow

static inline size_t refine_scratch(int64_t in, int64_t groups, int64_t rows) {
  const size_t unknowns = 2 * (size_t)groups;
  return ((size_t)in * 2 + kQuantiseBlock + unknowns * (unknowns + 1) / 2 + 3 * unknowns) * (size_t)rows;
}

struct QuantiseKernels {
  int rows;
  void (*fit)(const FitArgs*);
  void (*factor)(const FactorArgs*);
  void (*sweep)(const SweepArgs*);
  void (*refine)(const RefineArgs*);
};

extern const QuantiseKernels quantise_portable;
#if HEADWAY_X86
extern const QuantiseKernels quantise_avx2;
extern const QuantiseKernels quantise_avx512;
#endif

}  // namespace headway
