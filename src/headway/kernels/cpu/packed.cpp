#include "packed.h"

#include <algorithm>
#include <cstring>

namespace headway {
namespace {

size_t int8_form_bytes(const FormSpec& self, int64_t rows, int64_t cols) {
  return int8_bytes(rows, cols / kBlock, self.arg);
}

void int8_form_build(const FormSpec& self, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t begin,
                     int64_t end, void* out) {
  kernels().quantise(x, ldx, rows, cols / kBlock, self.arg, begin / kBlock, end / kBlock, out);
}

}  // namespace

const FormSpec kInt8Form{"int8", kBlock, 1, int8_form_bytes, int8_form_build};
const FormSpec kInt8HalvesForm{"int8-halves", kBlock, 2, int8_form_bytes, int8_form_build};

float float_from_half(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000) << 16, magnitude = value & 0x7fff;
  uint32_t bits = magnitude << 13;
  float f;
  if (magnitude >= 0x7c00) {
    bits |= 0x7f800000;
    std::memcpy(&f, &bits, 4);
  } else {
    std::memcpy(&f, &bits, 4);
    f *= 5.192296858534828e33f;  // 2^112
  }
  std::memcpy(&bits, &f, 4);
  bits |= sign;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t half_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits >= 0x7f800000) return uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (bits < 0x38800000) {
    float f;
    std::memcpy(&f, &bits, 4);
    f += 0.5f;
    std::memcpy(&bits, &f, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | ((bits + 0xc8000fff + ((bits >> 13) & 1)) >> 13));
}

DenseWeight::DenseWeight(Storage storage, int64_t out, int64_t in) : Weight(out, in), storage_(storage) {
  const size_t element = storage == Storage::f32 ? 4 : 2;
  packed_ = Buffer(size_t(tiles() * kTile * padded_in()) * element, Owner::weights);
}

void DenseWeight::fill(int64_t row, int64_t rows, const void* data) {
  const size_t element = storage_ == Storage::f32 ? 4 : 2;
  const auto* from = static_cast<const char*>(data);
  char* to = packed_.as<char>();
  for (int64_t r = row; r < row + rows; ++r)
    for (int64_t c = 0; c < in(); ++c, from += element)
      std::memcpy(to + size_t(((r / kTile) * padded_in() + c) * kTile + r % kTile) * element, from, element);
}

void DenseWeight::matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void*) const {
  kernels().dense(packed_.data(), int(storage_), padded_in(), in(), out(), acts.x(), acts.ldx(), acts.rows(), y, ldy,
                  tile_begin, tile_end, nullptr);
}

void DenseWeight::matmul_finish(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, void*,
                                const Finish& finish) const {
  kernels().dense(packed_.data(), int(storage_), padded_in(), in(), out(), acts.x(), acts.ldx(), acts.rows(), y, ldy,
                  tile_begin, tile_end, &finish);
}

void DenseWeight::expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const {
  kernels().dense_expand(packed_.data(), int(storage_), padded_in(), tile, col_begin, col_end, to);
}

namespace {
bool fits_half(const float* values, int64_t n) {
  for (int64_t i = 0; values && i < n; ++i) {
    const float back = float_from_half(half_from_float(values[i]));
    if (std::memcmp(&back, values + i, 4) != 0) return false;
  }
  return true;
}
}  // namespace

IntWeight::IntWeight(const float* scales, const float* minima, int64_t out, int64_t in, int64_t group, int bits,
                     int zero)
    : Weight(out, in) {
  tiles_.out = out;
  tiles_.blocks = padded_in() / kBlock;
  tiles_.group = group >= in && group != 16 ? padded_in() : group;
  tiles_.bits = bits;
  tiles_.zero = zero;
  tiles_.has_min = minima != nullptr;
  tiles_.wide_header = !(fits_half(scales, out * groups()) && fits_half(minima, out * groups()));
  const size_t headers = size_t((padded_in() + tiles_.group - 1) / tiles_.group);
  const size_t header_bytes = (tiles_.wide_header ? 64u : 32u) * (tiles_.has_min ? 2u : 1u);
  tiles_.tile_bytes = headers * header_bytes + size_t(tiles_.blocks) * (bits == 4 ? 256u : 512u);
  packed_ = Buffer(tiles_.tile_bytes * size_t(tiles()), Owner::weights);
  tiles_.data = packed_.as<uint8_t>();

  const size_t element = tiles_.wide_header ? 4 : 2;
  for (int64_t r = 0; r < out; ++r)
    for (int64_t g = 0; g < groups(); ++g) {
      uint8_t* at = header(r, g);
      const float* pair[2] = {scales, minima};
      for (int which = 0; which < 1 + tiles_.has_min; ++which, at += 16 * element) {
        const float value = pair[which][r * groups() + g];
        const uint16_t half = half_from_float(value);
        std::memcpy(at, tiles_.wide_header ? static_cast<const void*>(&value) : &half, element);
      }
    }
}

void IntWeight::fill(int64_t row, int64_t rows, const uint8_t* codes) {
  for (int64_t r = row; r < row + rows; ++r)
    for (int64_t c = 0; c < in(); ++c) {
      const uint8_t code = *codes++;
      uint8_t* at = code_line(r, c);
      *at = uint8_t(*at | (tiles_.bits == 4 && c % 32 >= 16 ? code << 4 : code));
    }
}

uint8_t* IntWeight::header(int64_t row, int64_t group) const {
  const size_t one = (tiles_.wide_header ? 64u : 32u) * (tiles_.has_min ? 2u : 1u);
  const size_t element = tiles_.wide_header ? 4 : 2, codes = tiles_.bits == 4 ? 256 : 512;
  uint8_t* tile = packed_.as<uint8_t>() + size_t(row / kTile) * tiles_.tile_bytes + size_t(row % kTile) * element;
  if (tiles_.group == 16) return tile + size_t(group / 2) * (2 * one + codes) + size_t(group % 2) * one;
  return tile + size_t(group) * (one + codes * size_t(tiles_.group / 32));
}

uint8_t* IntWeight::code_line(int64_t row, int64_t column) const {
  const size_t one = (tiles_.wide_header ? 64u : 32u) * (tiles_.has_min ? 2u : 1u);
  const size_t codes = tiles_.bits == 4 ? 256 : 512;
  const int64_t block = column / 32;
  const size_t headers = tiles_.group == 16 ? size_t(2 * (block + 1)) : size_t(block / (tiles_.group / 32) + 1);
  const int64_t k = tiles_.bits == 4 ? column % 16 : column % 32;
  return packed_.as<uint8_t>() + size_t(row / kTile) * tiles_.tile_bytes + headers * one + size_t(block) * codes +
         size_t(k / 4 * 64 + row % kTile * 4 + k % 4);
}

size_t IntWeight::scratch_bytes(int64_t rows) const {
  return tiles_.bits == 4 && rows > 1 ? size_t(tiles_.blocks) * 512 : 0;
}

void IntWeight::matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                       void* scratch) const {
  kernels().integer(&tiles_, acts.get(*form(acts.rows())), acts.rows(), y, ldy, tile_begin, tile_end, scratch);
}

void IntWeight::expand(int64_t tile, int64_t col_begin, int64_t col_end, float* to) const {
  kernels().integer_expand(&tiles_, tile, col_begin, col_end, to);
  const int64_t from = std::max(col_begin, in());
  if (from < col_end) std::memset(to + (from - col_begin) * kTile, 0, size_t((col_end - from) * kTile) * sizeof(float));
}

void IntWeight::unpack(uint8_t* codes, float* scales, float* minima) const {
  for (int64_t r = 0; r < out(); ++r) {
    for (int64_t g = 0; g < groups(); ++g)
      for (int which = 0; which < 1 + tiles_.has_min; ++which) {
        const uint8_t* at = header(r, g) + size_t(which) * (tiles_.wide_header ? 64 : 32);
        float value;
        if (tiles_.wide_header) {
          std::memcpy(&value, at, 4);
        } else {
          uint16_t half;
          std::memcpy(&half, at, 2);
          value = float_from_half(half);
        }
        float* to = which ? minima : scales;
        if (to) to[r * groups() + g] = value;
      }
    for (int64_t c = 0; c < in(); ++c) {
      const uint8_t at = *code_line(r, c);
      codes[r * in() + c] = tiles_.bits == 8 ? at : c % 32 >= 16 ? at >> 4 : at & 15;
    }
  }
}

}  // namespace headway
