// `LutWeight`: bit planes as the runtime's `Weight`, multiplied by look-up tables, and densely from a batch size on.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "lut_pack.h"
#include "weight.h"

namespace headway::lut {

class LutWeight final : public Weight {
 public:
  // `segment`: columns (32 or 64) that share one scale of the tables; 64 needs groups of a multiple of 64 columns, or
  // one group, and falls back to 32. `crossover`: rows of activations from which a uniform weight with groups of whole
  // blocks is expanded to 4-bit integers, tile by tile, and multiplied by the integer kernel; 0: never.
  // The product of few rows is the same for any number of them; from the crossover on activations are rounded
  // otherwise, so that it is not.
  LutWeight(const Stored& stored, int64_t segment, int64_t crossover, const Kernels& kernels);

  const char* kind() const override { return "bitplanes"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t rows) const override;
  size_t scratch_bytes(int64_t rows) const override;
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
              void* scratch) const override;
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const override;
  void gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const override;

  // With tables in float32, entry for entry: the reference of the algorithm. x: rows x in, y: rows x out.
  void matmul_float(const float* x, int64_t rows, float* y) const;

  const Kernels& kernels() const { return kernels_; }
  const View& view() const { return view_; }

  // Tiles multiplied in this process, by tables and densely: what shows that the kernels ran.
  static std::atomic<uint64_t> looked_up, dense;

 private:
  bool is_dense(int64_t rows) const { return crossover_ > 0 && rows >= crossover_; }
  void values(int64_t row, int64_t begin, int64_t end, float* out, int64_t step) const;
  unsigned bits_of(const uint8_t* block, int plane, int64_t quad, int64_t row) const;

  const Kernels& kernels_;
  Padding padding_;
  View view_;
  int64_t crossover_;
  const FormSpec* tables_;
  Buffer packed_;
};

// Those that can run with the instruction set in use, the best last.
std::vector<const Kernels*> kernels_here();

}  // namespace headway::lut
