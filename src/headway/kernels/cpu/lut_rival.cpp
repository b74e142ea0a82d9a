// The rivals as weights of the runtime, for the proof and its tests (lut_rival.h).
#include "lut_rival.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "arena.h"
#include "bindings.h"
#include "isa.h"
#include "packed.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway::lut {
namespace {

const RivalKernels& rivals_in_use() {
#if HEADWAY_X86
  if (isa() == Isa::avx512) return avx512_rivals();
  if (isa() == Isa::avx2) return avx2_rivals();
#endif
  return portable_rivals();
}

// ---- activations: int8 with one scale per group, and the group's sum ---------------------------------------------

struct Shape {
  int64_t cols, groups;
  size_t row_bytes() const { return size_t(cols) + size_t(groups) * 2 * sizeof(float); }
};

Shape shape_of(const FormSpec& form, int64_t cols) { return {cols, (cols + form.unit - 1) / form.unit}; }

size_t form_bytes(const FormSpec& form, int64_t rows, int64_t cols) {
  return size_t(rows) * shape_of(form, cols).row_bytes();
}

void form_build(const FormSpec& form, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t begin,
                int64_t end, void* out) {
  const Shape shape = shape_of(form, cols);
  for (int64_t row = 0; row < rows; ++row) {
    auto* codes = static_cast<int8_t*>(out) + size_t(row) * shape.row_bytes();
    auto* scales = reinterpret_cast<float*>(codes + cols);
    const float* from = x + row * ldx;
    for (int64_t first = begin; first < end; first += form.unit) {
      const int64_t last = std::min(end, first + form.unit);
      float largest = 0, sum = 0;
      for (int64_t c = first; c < last; ++c) {
        largest = std::max(largest, std::fabs(from[c]));
        sum += from[c];
      }
      const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
      for (int64_t c = first; c < last; ++c) codes[c] = int8_t(std::nearbyintf(from[c] * inverse));
      scales[first / form.unit] = largest / 127.0f;
      scales[shape.groups + first / form.unit] = sum;
    }
  }
}

const FormSpec kForms[] = {{"rival-32", 32, 0, form_bytes, form_build},
                           {"rival-64", 64, 0, form_bytes, form_build},
                           {"rival-128", 128, 0, form_bytes, form_build}};

// ---- the weight -------------------------------------------------------------------------------------------------

void set_code(Rival rival, uint8_t* block, int64_t row, int64_t column, unsigned code) {
  const int64_t quad = column / 4, at = 4 * row + column % 4;
  const auto put = [&](int64_t byte, unsigned bits, int64_t shift) {
    block[byte] = uint8_t(block[byte] | bits << shift);
  };
  if (rival == Rival::planes) {
    put(64 * (quad / 4) + at, code & 3, 2 * (quad % 4));
    put(128 + at, code >> 2, quad);
  } else if (rival == Rival::fields) {
    if (quad < 6) return put(64 * (quad % 3) + at, code, 3 * (quad / 3));
    put(64 * (quad - 6) + at, code & 3, 6);
    put(128 + at, code >> 2, quad);
  } else {
    for (int bit = 0; bit < 3; ++bit) {
      const int64_t rest = 3 * (column - 30) + bit;
      const int64_t line = column < 30 ? column / 10 : rest / 2;
      const int64_t to = column < 30 ? 3 * (column % 10) + bit : 30 + rest % 2;
      put(64 * line + 4 * row + to / 8, code >> bit & 1, to % 8);
    }
  }
}

class RivalWeight final : public Weight {
 public:
  RivalWeight(Rival rival, const uint8_t* codes, const uint16_t* scales, const uint16_t* offsets, int64_t out,
              int64_t in, int64_t group)
      : Weight(out, in), rival_(rival), group_(group), kernels_(rivals_in_use()) {
    const int64_t groups = (in + group - 1) / group;
    view_ = {nullptr, padded_in() / kBlock * 192 + groups * 64, out, padded_in() / kBlock, group / kBlock};
    packed_ = Buffer(size_t(tiles() * view_.tile_bytes), Owner::weights);
    view_.data = packed_.as<uint8_t>();
    for (int64_t row = 0; row < out; ++row) {
      for (int64_t c = 0; c < in; ++c) set_code(rival, block(row, c), row % kTile, c % kBlock, codes[row * in + c]);
      for (int64_t g = 0; g < groups; ++g) {
        uint16_t* to = floats(row, g);
        to[row % kTile] = scales[row * groups + g];
        to[kTile + row % kTile] = offsets[row * groups + g];
      }
    }
  }

  const char* kind() const override { return "rival"; }
  size_t bytes() const override { return packed_.size(); }
  const void* data() const override { return packed_.data(); }
  const FormSpec* form(int64_t) const override { return &kForms[group_ == 32 ? 0 : group_ == 64 ? 1 : 2]; }

  void matmul(const Acts& acts, float* y, int64_t ldy, int64_t begin, int64_t end, void*) const override {
    const Shape shape = shape_of(*form(1), acts.cols());
    const auto* prepared = static_cast<const int8_t*>(acts.get(*form(1)));
    for (int64_t row = 0; row < acts.rows(); ++row) {
      const int8_t* codes = prepared + size_t(row) * shape.row_bytes();
      const auto* scales = reinterpret_cast<const float*>(codes + shape.cols);
      kernels_.matmul[int(rival_)](view_, {acts.x() + row * acts.ldx(), codes, scales, scales + shape.groups},
                                   y + row * ldy, begin, end);
    }
  }

  void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const override {
    std::memset(to, 0, size_t((col_end - col_begin) * kTile) * sizeof(float));
    for (int64_t row = tile * kTile; row < std::min(out(), (tile + 1) * kTile); ++row)
      for (int64_t c = col_begin; c < std::min(col_end, in()); ++c) {
        const uint16_t* halves = floats(row, c / group_);
        const int code = rival_code(rival_, block(row, c), row % kTile, c % kBlock);
        const float value = float(code) * float_from_half(halves[row % kTile]);
        to[(c - col_begin) * kTile + row % kTile] = value + float_from_half(halves[kTile + row % kTile]);
      }
  }

 private:
  uint8_t* at(int64_t row, int64_t group) const {
    return packed_.as<uint8_t>() + row / kTile * view_.tile_bytes + group * (view_.group_blocks * 192 + 64);
  }
  uint8_t* block(int64_t row, int64_t column) const {
    return at(row, column / group_) + column % group_ / kBlock * 192;
  }
  uint16_t* floats(int64_t row, int64_t group) const {
    const int64_t blocks = std::min(view_.group_blocks, view_.blocks - group * view_.group_blocks);
    return reinterpret_cast<uint16_t*>(at(row, group) + blocks * 192);
  }

  Rival rival_;
  int64_t group_;
  const RivalKernels& kernels_;
  RivalView view_{};
  Buffer packed_;
};

template <class T> using Matrix = nb::ndarray<const T, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

NativeWeight pack_rival(int rival, const Matrix<uint8_t>& codes, const Matrix<uint16_t>& scales,
                        const Matrix<uint16_t>& offsets, int64_t group) {
  const auto out = int64_t(codes.shape(0)), in = int64_t(codes.shape(1));
  const int64_t groups = group > 0 ? (in + group - 1) / group : 0;
  const auto fits = [&](const Matrix<uint16_t>& m) {
    return int64_t(m.shape(0)) == out && int64_t(m.shape(1)) == groups;
  };
  if (rival < 0 || rival > 2 || (group != 32 && group != 64 && group != 128) || out < 1 || in < 1 || !fits(scales) ||
      !fits(offsets))
    throw nb::value_error("a rival is 0..2, with groups of 32, 64 or 128 and f16 scales and offsets (rows, groups)");
  if (*std::max_element(codes.data(), codes.data() + out * in) > 7) throw nb::value_error("a code is above 7");
  const nb::gil_scoped_release release;
  return {std::make_shared<RivalWeight>(Rival(rival), codes.data(), scales.data(), offsets.data(), out, in, group)};
}

void bind(nb::module_& m) {
  m.def("pack_rival", &pack_rival, "rival"_a, "codes"_a, "scales"_a, "offsets"_a, "group"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway::lut
