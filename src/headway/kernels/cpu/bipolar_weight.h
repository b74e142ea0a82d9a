// `BipolarWeight`: planes of +-1 as the runtime's `Weight`, multiplied by counting bits or by recovered codes.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "arena.h"
#include "bipolar.h"
#include "weight.h"

namespace headway::bipolar {

// A weight as it is stored. Bit c of a row's plane is bit c % 8 of byte c / 8.
struct Stored {
  int64_t out, in;
  int64_t group;          // columns that share a scale, a multiple of 32; 0: the row
  int bits;
  bool half;
  const uint8_t* planes;  // [bits][out][(in + 7) / 8]
  const void* scales;     // [out][groups]: f16 if `half`, else f32
  const void* offsets;    // the same, or null
  int64_t act_group;      // columns of activations that share a scale, a multiple of 32; 0: the row
  int64_t rotate;         // a power of two; 0: not turned
  int act_bits;
  bool clip;

  int64_t groups() const { return group ? (in + group - 1) / group : 1; }
};

// The form of activations that kernels of this level read; the same object for the same values.
struct Form;

class BipolarWeight final : public Weight {
 public:
  // `count_rows`: up to this many rows of activations bits are counted, from more on codes are recovered. Both give the
  // same bits, so this is only a matter of time.
  BipolarWeight(const Stored& stored, int64_t count_rows, const Kernels& kernels);

  const char* kind() const override { return "bipolar"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t rows) const override;
  size_t scratch_bytes(int64_t rows) const override;
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
              void* scratch) const override;
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const override;
  void gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const override;

  // sum_k V_w V_x over all columns, rows x out. x: rows x in.
  void integers(const float* x, int64_t rows, int64_t* y) const;

  const Kernels& kernels() const { return kernels_; }

  // Tiles multiplied in this process, each way: what shows that the kernels ran.
  static std::atomic<uint64_t> counted, recovered;

 private:
  bool counts(int64_t rows) const { return rows <= count_rows_; }
  void values(int64_t row, int64_t begin, int64_t end, float* out, int64_t step) const;
  float turned_value(int64_t row, int64_t column) const;

  const Kernels& kernels_;
  View view_;
  int64_t rotate_, count_rows_;
  const Form *planes_, *bytes_;
  Buffer packed_;
};

// Those that can run with the instruction set in use, the best last.
std::vector<const Kernels*> kernels_here();

}  // namespace headway::bipolar
