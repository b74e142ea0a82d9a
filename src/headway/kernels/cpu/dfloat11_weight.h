// `Dfloat11Weight`: a matrix of bfloat16 kept in its coded form, expanded a few tiles at a time before each product.
#pragma once
#include <atomic>
#include <memory>

#include "arena.h"
#include "dfloat11.h"
#include "weight.h"

namespace headway::dfloat11 {

// The tables of a codebook, shared by all weights that have the same. `lengths`: bits of the code of each exponent, 0
// for those that do not occur. Throws std::invalid_argument where no prefix code has such lengths.
std::shared_ptr<const Tables> tables_of(const uint8_t (&lengths)[256]);

// What is stored of one matrix (dfloat11.h).
struct Stored {
  int64_t out, in;
  const uint8_t *code, *sign_mantissa, *gaps;
  const uint32_t* positions;
  int64_t code_bytes, gap_bytes, blocks;
  int64_t weights() const { return out * in; }
  int64_t chunks() const { return (code_bytes + kChunkBytes - 1) / kChunkBytes; }
  uint64_t gap(int64_t chunk) const;
};

// A stream breaks a rule: `block` is where, `rule` what.
struct Damaged {
  int64_t block;
  const char* rule;
};

class Dfloat11Weight final : public Weight {
 public:
  // Decodes all of it once, on the pool's threads: throws Damaged where codes and positions do not agree.
  Dfloat11Weight(const Stored& stored, std::shared_ptr<const Tables> tables);

  const char* kind() const override { return "dfloat11"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t) const override { return nullptr; }
  int64_t tiles_together() const override { return kChains; }
  size_t scratch_bytes(int64_t rows) const override;
  // The dense kernel's product of the expanded tiles: the bits are those of the same matrix kept as bfloat16.
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
              void* scratch) const override;
  void matmul_exact(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                    void* scratch) const override;
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const override;
  void gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const override;

  // Expand `n` <= kChains tiles from `tile` on into packed dense form at the start of `scratch` (scratch_bytes).
  void expand_tiles(int64_t tile, int64_t n, void* scratch) const;
  // The same of one tile, one symbol at a time by the tables of the format (`luts`: rows of 256, the last one lengths):
  // what the kernel is compared with.
  void expand_plainly(int64_t tile, const uint8_t* luts, int64_t rows, uint16_t* to) const;
  // The whole matrix row by row, out x in bfloat16 bits.
  void unpack(uint16_t* to) const;
  void unpack_plainly(const uint8_t* luts, int64_t rows, uint16_t* to) const;

  const uint8_t* code() const { return packed_.as<uint8_t>(); }
  int64_t code_bytes() const { return code_bytes_; }
  const uint8_t* sign_mantissa(int64_t tile) const { return sign_mantissa_ + tile * kTile * in(); }
  static std::atomic<uint64_t> expanded;  // tiles expanded in this process: what shows that the kernel ran

 private:
  int64_t rows_of(int64_t tile) const { return out() - tile * kTile < kTile ? out() - tile * kTile : kTile; }
  void by_rows(int64_t tile, int64_t first, int64_t n, const uint16_t* values, uint16_t* to) const;
  void find_tiles(const Stored& stored);
  template <class F> void walk(int64_t tile, int64_t end, F&& f) const;

  std::shared_ptr<const Tables> tables_;
  int64_t code_bytes_;
  Buffer packed_;  // code, then sign and mantissa, then the first bit of each tile
  const uint8_t* sign_mantissa_ = nullptr;
  uint64_t* starts_ = nullptr;
};

const Level& level();  // the best of the instruction set in use

}  // namespace headway::dfloat11
