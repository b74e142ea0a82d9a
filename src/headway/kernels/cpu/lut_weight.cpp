// Bit-plane weights in the runtime: activations as tables, products by look-up or densely, exact values.
#include "lut_weight.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "isa.h"
#include "packed.h"
#include "pool.h"

namespace headway::lut {
namespace {

// ---- activations as tables --------------------------------------------------------------------------------------

struct Shape {
  int64_t blocks, segment_blocks, segments;
  size_t entry_bytes() const { return size_t(blocks * kTableBytes); }
};

// `arg` of a form is 0, or the group size when groups are not whole blocks and are padded one by one.
Shape shape_of(const FormSpec& form, int64_t cols) {
  if (form.arg == 0) {
    const int64_t blocks = cols / kColumns, segment_blocks = form.unit / kColumns;
    return {blocks, segment_blocks, (blocks + segment_blocks - 1) / segment_blocks};
  }
  const int64_t blocks = (cols + form.arg - 1) / form.arg * ((form.arg + kColumns - 1) / kColumns);
  return {blocks, 1, blocks};
}

size_t table_bytes(const FormSpec& form, int64_t rows, int64_t cols) {
  const Shape shape = shape_of(form, cols);
  return size_t(rows) * (shape.entry_bytes() + size_t(shape.segments) * sizeof(Segment));
}

Tables tables_in(const FormSpec& form, int64_t rows, int64_t cols, const void* buffer) {
  const Shape shape = shape_of(form, cols);
  const auto* entries = static_cast<const int8_t*>(buffer);
  const auto* segments = reinterpret_cast<const Segment*>(entries + size_t(rows) * shape.entry_bytes());
  return {entries, segments, rows, int64_t(shape.entry_bytes()), shape.segments, shape.segment_blocks};
}

void build_tables(const FormSpec& form, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t begin,
                  int64_t end, void* out) {
  const Tables to = tables_in(form, rows, cols, out);
  const Kernels& kernels = *kernels_here().back();
  for (int64_t row = 0; row < rows; ++row) {
    auto* entries = const_cast<int8_t*>(to.entries) + row * to.entry_stride;
    auto* segments = const_cast<Segment*>(to.segments) + row * to.segment_stride;
    const float* from = x + row * ldx;
    if (form.arg == 0) {
      kernels.build(from + begin, (end - begin) / kColumns, to.segment_blocks, entries + begin / kColumns * kTableBytes,
                    segments + begin / form.unit);
      continue;
    }
    const int64_t group = form.arg, blocks = (group + kColumns - 1) / kColumns;
    for (int64_t first = begin; first < end; first += group)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t c = first + b * kColumns, n = std::min({kColumns, first + group - c, end - c});
        float padded[kColumns] = {};
        if (n > 0) std::memcpy(padded, from + c, size_t(n) * sizeof(float));
        const int64_t block = first / group * blocks + b;
        kernels.build(padded, 1, 1, entries + block * kTableBytes, segments + block);
      }
  }
}

const FormSpec kTables32{"tables-32", 32, 0, table_bytes, build_tables};
const FormSpec kTables64{"tables-64", 64, 0, table_bytes, build_tables};

// Groups that are not whole blocks: one form per group size, kept for the life of the process.
const FormSpec* padded_tables(int64_t group) {
  static std::mutex mutex;
  static std::map<int64_t, std::unique_ptr<FormSpec>> forms;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& form = forms[group];
  if (!form)
    form.reset(new FormSpec{"tables-padded", std::lcm(group, kColumns), group, table_bytes, build_tables});
  return form.get();
}

}  // namespace

std::vector<const Kernels*> kernels_here() {
  std::vector<const Kernels*> found = {&portable_kernels()};
#if HEADWAY_X86
  if (isa() >= Isa::avx2) found.push_back(&avx2_kernels());
  if (isa() >= Isa::avx512) found.push_back(&avx512_kernels());
  if (isa() >= Isa::avx512 && features().vbmi) found.push_back(&vbmi_kernels());
#endif
  return found;
}

// ---- the weight -------------------------------------------------------------------------------------------------

std::atomic<uint64_t> LutWeight::looked_up{0}, LutWeight::dense{0};

LutWeight::LutWeight(const Stored& stored, int64_t segment, int64_t crossover, const Kernels& kernels)
    : Weight(stored.out, stored.in),
      kernels_(kernels),
      padding_{stored.in, stored.group},
      view_(view_of(stored)),
      packed_(packed_bytes(view_), Owner::weights) {
  const bool one_group = stored.group >= stored.in, whole = one_group || stored.group % kColumns == 0;
  const bool wide_segment = segment == 64 && (one_group || stored.group % 64 == 0);
  tables_ = !whole ? padded_tables(stored.group) : wide_segment ? &kTables64 : &kTables32;
  crossover_ = whole && stored.uniform ? crossover : 0;
  auto* to = packed_.as<uint8_t>();
  Pool::Session session;
  session.run(tiles(), [&](int64_t tile, int) { pack(stored, kernels_.wide, view_, tile, to); });
  view_.data = to;
}

const FormSpec* LutWeight::form(int64_t rows) const { return is_dense(rows) ? &kInt8Form : tables_; }

// Dense: one tile of codes, and the room in which the integer kernel unpacks it.
size_t LutWeight::scratch_bytes(int64_t rows) const {
  if (!is_dense(rows)) return 0;
  const int64_t groups = (view_.blocks + view_.group_blocks - 1) / view_.group_blocks;
  return size_t(round_up(groups * 128 + view_.blocks * 256, 64) + view_.blocks * 512);
}

void LutWeight::matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                       void* scratch) const {
  if (!is_dense(acts.rows())) {
    kernels_.matmul(view_, tables_in(*tables_, acts.rows(), acts.cols(), acts.get(*tables_)), y, ldy, tile_begin,
                    tile_end);
    looked_up.fetch_add(uint64_t(tile_end - tile_begin), std::memory_order_relaxed);
    return;
  }
  auto* codes = static_cast<uint8_t*>(scratch);
  uint8_t* room = codes + scratch_bytes(acts.rows()) - size_t(view_.blocks) * 512;
  IntTiles one{codes, size_t(room - codes), kTile, view_.blocks, view_.group_blocks * kColumns, 4, 0, 1, !view_.half};
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    kernels_.codes(view_, tile, codes);
    one.out = std::min(kTile, out() - tile * kTile);
    headway::kernels().integer(&one, acts.get(kInt8Form), acts.rows(), y + tile * kTile, ldy, 0, 1, room);
  }
  dense.fetch_add(uint64_t(tile_end - tile_begin), std::memory_order_relaxed);
}

// ---- exact values -----------------------------------------------------------------------------------------------

unsigned LutWeight::bits_of(const uint8_t* block, int plane, int64_t quad, int64_t row) const {
  const Place at = place(kernels_.wide, view_.bits, view_.uniform, plane, quad, row);
  return unsigned(block[at.byte] >> at.shift) & 15;
}

// Columns [begin, end) of one row, out[(c - begin) * step]. Uniform: code * scale, rounded, + offset, rounded.
// Otherwise the planes' +-alpha added in order, then the offset.
void LutWeight::values(int64_t row, int64_t begin, int64_t end, float* out, int64_t step) const {
  const uint8_t* tile = view_.data + row / kRows * view_.tile_bytes;
  const int64_t r = row % kRows, block_bytes = 64 * view_.bits, size = view_.half ? 2 : 4;
  const int apart = view_.uniform ? 1 : view_.bits;
  const int64_t group_bytes = view_.group_blocks * block_bytes + (apart + 1) * kRows * size;
  const auto number = [&](const uint8_t* floats, int64_t i) {
    if (view_.half) {
      uint16_t half;
      std::memcpy(&half, floats + (i * kRows + r) * 2, 2);
      return float_from_half(half);
    }
    float value;
    std::memcpy(&value, floats + (i * kRows + r) * 4, 4);
    return value;
  };
  for (int64_t c = begin; c < end;) {
    const int64_t group = c / padding_.group, first = group * padding_.group;
    const int64_t group_end = std::min(end, std::min(in(), first + padding_.group));
    const uint8_t* at = tile + group * group_bytes;
    const int64_t blocks = std::min(view_.group_blocks, view_.blocks - group * view_.group_blocks);
    const uint8_t* floats = at + blocks * block_bytes;
    float scales[4] = {};
    for (int i = 0; i < apart; ++i) scales[i] = number(floats, i);
    const float offset = number(floats, apart);
    while (c < group_end) {
      const int64_t within = c - first, quad_end = std::min(group_end, c - within % 4 + 4);
      unsigned bits[4] = {};
      for (int plane = 0; plane < view_.bits; ++plane)
        bits[plane] = bits_of(at + within / kColumns * block_bytes, plane, within % kColumns / 4, r);
      for (; c < quad_end; ++c) {
        const int column = int((c - first) % 4);
        float value = 0;
        if (view_.uniform) {
          unsigned code = 0;
          for (int plane = 0; plane < view_.bits; ++plane) code |= (bits[plane] >> column & 1) << plane;
          value = float(code) * scales[0];
        } else {
          for (int plane = 0; plane < view_.bits; ++plane)
            value += bits[plane] >> column & 1 ? scales[plane] : -scales[plane];
        }
        out[(c - begin) * step] = value + offset;
      }
    }
  }
}

void LutWeight::expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const {
  std::memset(to, 0, size_t((col_end - col_begin) * kTile) * sizeof(float));
  const int64_t end = std::min(col_end, in());
  for (int64_t r = 0; r < std::min(kTile, out() - tile * kTile); ++r)
    if (col_begin < end) values(tile * kTile + r, col_begin, end, to + r, kTile);
}

void LutWeight::gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const {
  for (int64_t i = 0; i < n; ++i) values(ids[i], 0, in(), dst + i * ld, 1);
}

void LutWeight::matmul_float(const float* x, int64_t rows, float* y) const {
  const int64_t group = padding_.group, block_bytes = 64 * view_.bits;
  const int apart = view_.uniform ? 1 : view_.bits;
  const float centre = 0.5f * float((1 << view_.bits) - 1);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t row = 0; row < out(); ++row) y[b * out() + row] = 0;
  std::vector<float> tables(size_t(view_.group_blocks * 8 * 16));
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t first = 0, k = 0; first < in(); first += group, ++k) {
      const int64_t end = std::min(in(), first + group), quads = (end - first + 3) / 4;
      const int64_t blocks = (end - first + kColumns - 1) / kColumns;
      float sum = 0;
      for (int64_t q = 0; q < quads; ++q) {
        float v[4];
        for (int64_t t = 0; t < 4; ++t) v[t] = first + 4 * q + t < end ? x[b * in() + first + 4 * q + t] : 0.0f;
        for (unsigned j = 0; j < 16; ++j)
          tables[size_t(16 * q + j)] = ((j & 8 ? v[3] : -v[3]) + (j & 4 ? v[2] : -v[2])) +
                                       ((j & 2 ? v[1] : -v[1]) + (j & 1 ? v[0] : -v[0]));
        sum += tables[size_t(16 * q + 15)];
      }
      for (int64_t row = 0; row < out(); ++row) {
        const int64_t group_bytes = view_.group_blocks * block_bytes + (apart + 1) * kRows * (view_.half ? 2 : 4);
        const uint8_t* at = view_.data + row / kRows * view_.tile_bytes + k * group_bytes;
        const uint8_t* floats = at + blocks * block_bytes;
        const auto number = [&](int64_t i) {
          const int64_t index = i * kRows + row % kRows;
          return view_.half ? float_from_half(reinterpret_cast<const uint16_t*>(floats)[index])
                            : reinterpret_cast<const float*>(floats)[index];
        };
        float part[4] = {};
        for (int plane = 0; plane < view_.bits; ++plane) {
          float p = 0;
          for (int64_t q = 0; q < quads; ++q)
            p += tables[size_t(16 * q) + bits_of(at + q / 8 * block_bytes, plane, q % 8, row % kRows)];
          part[view_.uniform ? 0 : plane] += view_.uniform ? float(1 << plane) * p : p;
        }
        float value = 0;
        if (view_.uniform) value = number(0) * (0.5f * part[0] + centre * sum);
        else
          for (int plane = 0; plane < view_.bits; ++plane) value += number(plane) * part[plane];
        y[b * out() + row] += value + number(apart) * sum;
      }
    }
}

}  // namespace headway::lut
