// Bipolar weights in the runtime: activations quantised once per use, products either way, exact values.
#include "bipolar_weight.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <tuple>

#include "isa.h"
#include "packed.h"
#include "pool.h"

namespace headway::bipolar {

// ---- activations ------------------------------------------------------------------------------------------------

struct Form : FormSpec {
  Quantiser how;
};

namespace {

constexpr int64_t kWhole = int64_t(1) << 40;  // columns of a unit that is the whole row

int64_t segments_of(const Quantiser& how, int64_t cols) {
  return (cols / kColumns + how.segment_blocks - 1) / how.segment_blocks;
}

size_t code_bytes(const Quantiser& how, int64_t rows, int64_t cols) {
  const int64_t bytes = how.planes ? rows * cols / kColumns * how.bits * 4 : rows * cols;
  return size_t(round_up(bytes, 64));
}

size_t form_bytes(const FormSpec& self, int64_t rows, int64_t cols) {
  const Quantiser& how = static_cast<const Form&>(self).how;
  return code_bytes(how, rows, cols) + size_t(round_up(segments_of(how, cols) * 12 * rows, 64)) + size_t(cols) * 4;
}

void form_build(const FormSpec& self, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t begin,
                int64_t end, void* out) {
  const Quantiser& how = static_cast<const Form&>(self).how;
  auto* codes = static_cast<char*>(out);
  char* meta = codes + code_bytes(how, rows, cols);
  auto* turned = reinterpret_cast<float*>(meta + round_up(segments_of(how, cols) * 12 * rows, 64));
  kernels_here().back()->quantise(how, x, ldx, rows, begin, end, codes, meta, turned);
}

// One object for the same values, kept for the life of the process.
const Form* form_of(const Quantiser& how) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, int, bool, bool>, std::unique_ptr<Form>> forms;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& form = forms[{how.in, how.group_blocks, how.segment_blocks, how.rotate, how.bits, how.clip, how.planes}];
  if (!form) {
    const int64_t group = how.group_blocks * kColumns;
    const int64_t unit = group >= how.in ? kWhole : std::lcm(group, std::max<int64_t>(how.rotate, kColumns));
    form.reset(new Form{{how.planes ? "bipolar-planes" : "bipolar-bytes", unit, how.bits, form_bytes, form_build}, how});
  }
  return form.get();
}

Activations activations(const Form& form, const Acts& acts) {
  const auto* codes = static_cast<const char*>(acts.get(form));
  return {codes, codes + code_bytes(form.how, acts.rows(), acts.cols()), acts.rows(), form.how.bits};
}

}  // namespace

std::vector<const Kernels*> kernels_here() {
  std::vector<const Kernels*> found = {&portable_kernels()};
#if HEADWAY_X86
  if (isa() >= Isa::avx2) found.push_back(&avx2_kernels());
  if (isa() >= Isa::avx512) found.push_back(&avx512_kernels());
  if (isa() >= Isa::avx512 && features().vpopcntdq) found.push_back(&vpopcntdq_kernels());
#endif
  return found;
}

// ---- the weight -------------------------------------------------------------------------------------------------

std::atomic<uint64_t> BipolarWeight::counted{0}, BipolarWeight::recovered{0};

namespace {

View view_of(const Stored& w) {
  View view{};
  view.out = w.out;
  view.in = w.in;
  view.blocks = (w.in + kColumns - 1) / kColumns;
  view.group_blocks = w.group && w.group < w.in ? w.group / kColumns : view.blocks;
  const int64_t group = view.group_blocks < view.blocks ? view.group_blocks : 0;
  const int64_t act = w.act_group && w.act_group < w.in ? w.act_group / kColumns : 0;
  const int64_t both = std::gcd(group, act);  // 0: neither divides the row
  view.segment_blocks = both ? both : std::min(view.blocks, kSegmentBlocks);
  view.bits = w.bits;
  view.half = w.half;
  view.offset = w.offsets != nullptr;
  const int64_t header = (w.half ? 32 : 64) * (1 + view.offset);
  view.tile_bytes = view.blocks * 64 * w.bits + w.groups() * header;
  return view;
}

// One tile into its place, which is zero. Bit 8c + q of a row's word is column 4q + c of the block.
void pack(const Stored& w, const View& view, int64_t tile, uint8_t* at) {
  const int64_t row_bytes = (w.in + 7) / 8, size = w.half ? 2 : 4, groups = w.groups();
  const auto number = [&](const void* from, int64_t row, int64_t group) {
    return static_cast<const uint8_t*>(from) + (row * groups + group) * size;
  };
  for (int64_t group = 0, block = 0; group < groups; ++group) {
    for (const void* floats : {w.scales, w.offsets}) {
      if (!floats) continue;
      for (int64_t r = 0; r < kRows && tile * kRows + r < w.out; ++r)
        std::memcpy(at + r * size, number(floats, tile * kRows + r, group), size_t(size));
      at += kRows * size;
    }
    for (const int64_t end = std::min(view.blocks, block + view.group_blocks); block < end; ++block)
      for (int plane = 0; plane < w.bits; ++plane, at += 64)
        for (int64_t r = 0; r < kRows && tile * kRows + r < w.out; ++r) {
          const uint8_t* bits = w.planes + (plane * w.out + tile * kRows + r) * row_bytes;
          uint32_t word = 0;
          for (int64_t c = block * kColumns; c < std::min(w.in, (block + 1) * kColumns); ++c) {
            const int64_t k = c % kColumns;
            word |= uint32_t(bits[c / 8] >> (c % 8) & 1) << (8 * (k % 4) + k / 4);
          }
          std::memcpy(at + 4 * r, &word, 4);
        }
  }
}

}  // namespace

BipolarWeight::BipolarWeight(const Stored& stored, int64_t count_rows, const Kernels& kernels)
    : Weight(stored.out, stored.in),
      kernels_(kernels),
      view_(view_of(stored)),
      rotate_(stored.rotate),
      count_rows_(count_rows),
      packed_(size_t(tiles() * view_.tile_bytes), Owner::weights) {
  const int64_t act = stored.act_group && stored.act_group < stored.in ? stored.act_group / kColumns : view_.blocks;
  Quantiser how{stored.in, act, view_.segment_blocks, stored.rotate, stored.act_bits, stored.clip, true};
  planes_ = form_of(how);
  how.planes = false;
  bytes_ = form_of(how);
  auto* to = packed_.as<uint8_t>();
  view_.data = to;
  Pool::Session session;
  session.run(tiles(), [&](int64_t tile, int) { pack(stored, view_, tile, to + tile * view_.tile_bytes); });
}

const FormSpec* BipolarWeight::form(int64_t rows) const { return counts(rows) ? planes_ : bytes_; }

size_t BipolarWeight::scratch_bytes(int64_t rows) const {
  return counts(rows) ? 0 : recover_scratch(view_.blocks, view_.segment_blocks);
}

void BipolarWeight::matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                           void* scratch) const {
  const bool by_counting = counts(acts.rows());
  (by_counting ? kernels_.count : kernels_.recover)(view_, activations(by_counting ? *planes_ : *bytes_, acts), y,
                                                    nullptr, ldy, tile_begin, tile_end, scratch);
  (by_counting ? counted : recovered).fetch_add(uint64_t(tile_end - tile_begin), std::memory_order_relaxed);
}

void BipolarWeight::integers(const float* x, int64_t rows, int64_t* y) const {
  Buffer padded(size_t(rows * padded_in()) * sizeof(float), Owner::scratch);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(padded.as<float>() + r * padded_in(), x + r * in(), size_t(in()) * sizeof(float));
  Acts acts;
  acts.reset(padded.as<float>(), padded_in(), rows, padded_in());
  acts.ensure(*form(rows));
  const bool by_counting = counts(rows);
  Buffer scratch(scratch_bytes(rows) + 64, Owner::scratch);
  (by_counting ? kernels_.count : kernels_.recover)(view_, activations(by_counting ? *planes_ : *bytes_, acts), nullptr,
                                                    y, out(), 0, tiles(), scratch.data());
}

// ---- exact values -----------------------------------------------------------------------------------------------

// Value of the stored (turned) matrix: scale V + offset, rounded once from float64.
float BipolarWeight::turned_value(int64_t row, int64_t column) const {
  const int64_t block = column / kColumns, group = block / view_.group_blocks, size = view_.half ? 2 : 4;
  const int64_t header = kRows * size * (1 + view_.offset);
  const uint8_t* tile = view_.data + row / kRows * view_.tile_bytes;
  const uint8_t* floats = tile + group * (header + view_.group_blocks * 64 * view_.bits);
  const auto number = [&](const uint8_t* at) {
    if (view_.half) {
      uint16_t half;
      std::memcpy(&half, at + row % kRows * 2, 2);
      return float_from_half(half);
    }
    float value;
    std::memcpy(&value, at + row % kRows * 4, 4);
    return value;
  };
  const uint8_t* lines = floats + header + (block - group * view_.group_blocks) * 64 * view_.bits;
  const int64_t k = column % kColumns;
  int code = 0;
  for (int plane = 0; plane < view_.bits; ++plane) {
    uint32_t word;
    std::memcpy(&word, lines + plane * 64 + row % kRows * 4, 4);
    code |= int(word >> (8 * (k % 4) + k / 4) & 1) << plane;
  }
  const int value = 2 * code - ((1 << view_.bits) - 1);
  const double offset = view_.offset ? double(number(floats + kRows * size)) : 0.0;
  return float(double(number(floats)) * double(value) + offset);
}

// Columns [begin, end) of one row, turned back, out[(c - begin) * step].
void BipolarWeight::values(int64_t row, int64_t begin, int64_t end, float* out, int64_t step) const {
  if (!rotate_) {
    for (int64_t c = begin; c < end; ++c) out[(c - begin) * step] = turned_value(row, c);
    return;
  }
  float part[4096];
  for (int64_t c = begin / rotate_ * rotate_; c < end;) {
    int64_t n = rotate_;
    while (n > in() - c) n /= 2;
    if (c + n > begin) {
      for (int64_t k = 0; k < n; ++k) part[k] = turned_value(row, c + k);
      float by = 1;
      for (int64_t k = n; k >= 4; k /= 4) by *= 0.5f;
      kernels_.turn(part, n, by);
      for (int64_t k = std::max(begin, c); k < std::min(end, c + n); ++k) out[(k - begin) * step] = part[k - c];
    }
    c += n;
  }
}

void BipolarWeight::expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const {
  std::memset(to, 0, size_t((col_end - col_begin) * kTile) * sizeof(float));
  const int64_t end = std::min(col_end, in());
  for (int64_t r = 0; r < std::min(kTile, out() - tile * kTile); ++r)
    if (col_begin < end) values(tile * kTile + r, col_begin, end, to + r, kTile);
}

void BipolarWeight::gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const {
  for (int64_t i = 0; i < n; ++i) values(ids[i], 0, in(), dst + i * ld, 1);
}

}  // namespace headway::bipolar
