// Coding the exponents of a matrix of bfloat16 (dfloat11.h).
#pragma once
#include <cstdint>
#include <vector>

namespace headway::dfloat11 {

struct Encoded {
  std::vector<uint8_t> code, sign_mantissa, gaps;
  std::vector<uint32_t> positions;
};

// counts[e] += weights whose exponent is e; values: bfloat16 bits.
void count_exponents(const uint16_t* values, int64_t n, uint64_t (&counts)[256]);

// values: out x in, row by row, fewer than 2^32. lengths: a full prefix code (`tables_of`) that has every exponent;
// std::invalid_argument if one is missing.
Encoded encode(const uint16_t* values, int64_t out, int64_t in, const uint8_t (&lengths)[256]);

}  // namespace headway::dfloat11
