#include "w8a16_weight.h"

#include "isa.h"
#include "w8a16.h"

namespace headway {
namespace {

const W8a16Kernels& w8a16() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return w8a16_avx512;
    case Isa::avx2: return w8a16_avx2;
    default: break;
  }
#endif
  return w8a16_portable;
}

size_t form_bytes(const FormSpec&, int64_t rows, int64_t cols) { return w8a16_bytes(rows, cols); }

void form_build(const FormSpec&, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t, int64_t, void* out) {
  w8a16().quantise(x, ldx, rows, cols, out);
}

constexpr int64_t kWholeRows = int64_t(1) << 40;  // a row has one scale, so that its columns are built together
const FormSpec kInt16Form{"int16", kWholeRows, 1, form_bytes, form_build};

class W8a16Weight final : public Weight {
 public:
  explicit W8a16Weight(std::shared_ptr<const IntWeight> codes)
      : Weight(codes->out(), codes->in()), codes_(std::move(codes)) {}

  const char* kind() const override { return "int8"; }
  size_t bytes() const override { return codes_->bytes(); }
  const void* data() const override { return codes_->data(); }
  const FormSpec* form(int64_t) const override { return &kInt16Form; }
  size_t scratch_bytes(int64_t) const override { return w8a16_scratch_bytes(padded_in()); }
  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
              void* scratch) const override {
    multiply(acts, y, ldy, tile_begin, tile_end, scratch, nullptr);
  }
  void matmul_finish(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void* scratch,
                     const Finish& finish) const override {
    multiply(acts, y, ldy, tile_begin, tile_end, scratch, &finish);
  }
  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const override {
    codes_->expand(tile, col_begin, col_end, to);
  }

 private:
  void multiply(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void* scratch,
                const Finish* finish) const {
    w8a16().multiply(&codes_->layout(), in(), acts.get(kInt16Form), acts.rows(), y, ldy, tile_begin, tile_end, scratch,
                     finish);
  }
  std::shared_ptr<const IntWeight> codes_;
};

}  // namespace

WeightPtr with_wide_activations(WeightPtr weight) {
  auto codes = std::dynamic_pointer_cast<const IntWeight>(weight);
  if (!codes) return weight;
  const IntTiles& tiles = codes->layout();
  if (tiles.bits != 8 || tiles.has_min || tiles.group == 16) return weight;
  return std::make_shared<W8a16Weight>(std::move(codes));
}

}  // namespace headway
