// The plain form of decoding and joining.
#include "../dfloat11_kernel.h"

namespace headway::dfloat11 {
namespace {

void join(const uint8_t* symbols, const uint8_t* sign_mantissa, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const unsigned e = symbols[i], s = sign_mantissa[i];
    out[i] = (uint16_t)((((e & 0x7f) | (s & 0x80)) << 8) | (e & 0x80) | (s & 0x7f));
  }
}

}  // namespace

const Level level_portable = {"portable", decode, join};

}  // namespace headway::dfloat11
