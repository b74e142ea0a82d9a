// The built-in weights: dense tiles, and integer tiles with a scale and perhaps a minimum per group (kernels.h).
#pragma once
#include "arena.h"
#include "kernels.h"
#include "weight.h"

namespace headway {

// int8 activations in blocks of 32; `arg` is the number of parts (1, or 2 for groups of 16).
extern const FormSpec kInt8Form, kInt8HalvesForm;

enum class Storage : int { f32 = 0, f16 = 1, bf16 = 2 };

class DenseWeight final : public Weight {
 public:
  // All zero; `fill` puts rows in before the weight is used: row-major, of the storage's type.
  DenseWeight(Storage storage, int64_t out, int64_t in);
  void fill(int64_t row, int64_t rows, const void* data);

  const char* kind() const override { return "dense"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t) const override { return nullptr; }
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void*) const override;
  void matmul_finish(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void*,
                     const Finish& finish) const override;
  void matmul_exact(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                    void* scratch) const override {
    matmul(acts, y, ldy, tile_begin, tile_end, scratch);
  }
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const override;
  Storage storage() const { return storage_; }

 private:
  Storage storage_;
  Buffer packed_;
};

class IntWeight final : public Weight {
 public:
  // scales, minima (or null): out x groups, groups = ceil(in / group). `group`: 16, a multiple of 32, or anything >= in
  // for one group per row. Value = scale * (code - zero) + minimum. Headers are stored in f16 when that loses nothing,
  // else in f32. Codes are 0 until `fill`, once for every row before the weight is used: rows x in bytes below 2^bits.
  IntWeight(const float* scales, const float* minima, int64_t out, int64_t in, int64_t group, int bits, int zero);
  void fill(int64_t row, int64_t rows, const uint8_t* codes);

  const char* kind() const override { return tiles_.bits == 4 ? "int4" : "int8"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t) const override { return tiles_.group == 16 ? &kInt8HalvesForm : &kInt8Form; }
  size_t scratch_bytes(int64_t rows) const override;
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
              void* scratch) const override;
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const override;

  const IntTiles& layout() const { return tiles_; }
  int64_t groups() const { return (in() + tiles_.group - 1) / tiles_.group; }
  void unpack(uint8_t* codes, float* scales, float* minima) const;  // minima may be null

 private:
  uint8_t* header(int64_t row, int64_t group) const;
  uint8_t* code_line(int64_t row, int64_t column) const;
  IntTiles tiles_{};
  Buffer packed_;
};

// One f16 <-> f32, for packing.
uint16_t half_from_float(float value);
float float_from_half(uint16_t value);

}  // namespace headway
