#include "dfloat11_encode.h"

#include <algorithm>
#include <stdexcept>

#include "dfloat11.h"
#include "weight.h"

namespace headway::dfloat11 {

void count_exponents(const uint16_t* values, int64_t n, uint64_t (&counts)[256]) {
  uint32_t apart[4][256];  // neighbours are often equal: four counters do not wait for one another
  for (int64_t at = 0; at < n;) {
    const int64_t end = std::min(n, at + (int64_t(1) << 30));
    std::fill_n(&apart[0][0], 4 * 256, 0u);
    for (; at < end; ++at) ++apart[at & 3][values[at] >> 7 & 0xff];
    for (auto& counter : apart)
      for (int e = 0; e < 256; ++e) counts[e] += counter[e];
  }
}

Encoded encode(const uint16_t* values, int64_t out, int64_t in, const uint8_t (&lengths)[256]) {
  const int64_t n = out * in;
  uint64_t counts[256] = {}, bits = 0, codes[256] = {}, next = 0;
  count_exponents(values, n, counts);
  for (int e = 0; e < 256; ++e) {
    if (counts[e] && !lengths[e]) throw std::invalid_argument("the codebook lacks an exponent of the matrix");
    bits += counts[e] * lengths[e];
  }
  for (int length = 1; length <= kMostBits; ++length, next <<= 1)  // canonical: shorter codes first, then by exponent
    for (int e = 0; e < 256; ++e)
      if (lengths[e] == length) codes[e] = next++;

  Encoded made;
  const auto code_bytes = int64_t((bits + 7) / 8);
  const int64_t chunks = (code_bytes + kChunkBytes - 1) / kChunkBytes;
  made.code.resize(size_t(chunks * kChunkBytes));
  made.sign_mantissa.resize(size_t(n));
  std::vector<uint8_t> gaps(size_t(chunks), 0);
  made.positions.assign(size_t((code_bytes + kBlockBytes - 1) / kBlockBytes + 1), uint32_t(n));

  uint8_t* to = made.code.data();
  uint64_t window = 0, at = 0;  // the codes not written yet, right-aligned; the bit where the next code starts
  int held = 0;
  int64_t index = 0, chunk = 0;
  const auto put = [&](uint16_t value) {
    const unsigned e = value >> 7 & 0xff;
    const int length = lengths[e];
    made.sign_mantissa[size_t(index)] = uint8_t((value >> 8 & 0x80) | (value & 0x7f));
    if (at >= uint64_t(chunk) * 64) {  // no chunk is skipped: codes are shorter than one
      if (chunk % kBlockChunks == 0) made.positions[size_t(chunk / kBlockChunks)] = uint32_t(index);
      gaps[size_t(chunk)] = uint8_t(at - uint64_t(chunk) * 64);
      ++chunk;
    }
    window = window << length | codes[e];
    held += length;
    at += uint64_t(length);
    if (held >= 32) {
      held -= 32;
      const auto word = uint32_t(window >> held);
      for (int b = 0; b < 4; ++b) *to++ = uint8_t(word >> (24 - 8 * b));
    }
    ++index;
  };
  for (int64_t row = 0; row < out; row += kTile)
    for (int64_t c = 0; c < in; ++c)
      for (int64_t r = row; r < std::min(out, row + kTile); ++r) put(values[r * in + c]);
  if (chunk < chunks) gaps[size_t(chunk)] = uint8_t(at - uint64_t(chunk) * 64);  // a last code ends in a chunk of its own
  for (; held > 0; held -= 8) *to++ = uint8_t(held >= 8 ? window >> (held - 8) : window << (8 - held));
  made.code.resize(size_t(code_bytes));

  made.gaps.assign(size_t((chunks * 5 + 7) / 8), 0);
  for (int64_t i = 0; i < chunks; ++i) {
    const unsigned pair = unsigned(gaps[size_t(i)]) << (11 - i * 5 % 8);
    made.gaps[size_t(i * 5 / 8)] |= uint8_t(pair >> 8);
    if (pair & 0xff) made.gaps[size_t(i * 5 / 8 + 1)] |= uint8_t(pair);
  }
  return made;
}

}  // namespace headway::dfloat11
