// Activations and their forms; the exact matmul and the row gather that every weight inherits.
#include "weight.h"

#include <algorithm>
#include <cstring>

#include "arena.h"
#include "kernels.h"

namespace headway {

struct Acts::Slot {
  const FormSpec* spec = nullptr;
  Buffer buffer;
  bool fresh = false;
};

Acts::Acts() = default;
Acts::~Acts() = default;

void Acts::reset(const float* x, int64_t ldx, int64_t rows, int64_t cols) {
  x_ = x;
  ldx_ = ldx;
  rows_ = rows;
  cols_ = cols;
  for (auto& slot : slots_) slot->fresh = false;
}

Acts::Slot* Acts::find(const FormSpec& spec) const {
  for (const auto& slot : slots_)
    if (slot->spec == &spec) return slot.get();
  return nullptr;
}

bool Acts::reserve(const FormSpec& spec) {
  Slot* slot = find(spec);
  if (!slot) {
    slots_.push_back(std::make_unique<Slot>());
    slot = slots_.back().get();
    slot->spec = &spec;
  }
  if (slot->fresh) return false;
  slot->buffer.grow(spec.bytes(spec, rows_, cols_), Owner::scratch);
  slot->fresh = true;
  return true;
}

void Acts::build(const FormSpec& spec, int64_t unit_begin, int64_t unit_end) {
  Slot* slot = find(spec);
  spec.build(spec, x_, ldx_, rows_, cols_, unit_begin * spec.unit, std::min(cols_, unit_end * spec.unit),
             slot->buffer.data());
}

void Acts::ensure(const FormSpec& spec) {
  if (reserve(spec)) build(spec, 0, units(spec));
}

const void* Acts::get(const FormSpec& spec) const {
  const Slot* slot = find(spec);
  return slot && slot->fresh ? slot->buffer.data() : nullptr;
}

namespace {
constexpr int64_t kExactColumns = 256;  // columns expanded at a time: 16 KiB, half of the first-level cache
}

size_t Weight::exact_scratch_bytes() { return size_t(kExactColumns * kTile) * sizeof(float); }

void Weight::matmul_finish(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                           void* scratch, const Finish& finish) const {
  matmul(acts, y, ldy, tile_begin, tile_end, scratch);
  kernels().finish(y, ldy, acts.rows(), tile_begin * kTile, out(), tile_end * kTile, &finish);
}

void Weight::matmul_exact(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                          void* scratch) const {
  float* panel = static_cast<float*>(scratch);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t rows_of_tile = std::min(kTile, out_ - tile * kTile);
    for (int64_t c = 0; c < padded_in(); c += kExactColumns) {
      const int64_t end = std::min(padded_in(), c + kExactColumns);
      expand(tile, c, end, panel);
      kernels().dense_panel(panel, end - c, acts.x() + c, acts.ldx(), acts.rows(), y + tile * kTile, ldy,
                            rows_of_tile, c > 0);
    }
  }
}

void Weight::gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const {
  alignas(64) float panel[kBlock * 4 * kTile];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < padded_in(); c += kBlock * 4) {
      const int64_t end = std::min(padded_in(), c + kBlock * 4);
      expand(ids[i] / kTile, c, end, panel);
      for (int64_t k = c; k < std::min(end, in_); ++k) dst[i * ld + k] = panel[(k - c) * kTile + ids[i] % kTile];
    }
}

}  // namespace headway
