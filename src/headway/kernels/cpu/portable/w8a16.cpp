#include "simd.h"

namespace headway {
namespace {

constexpr int kPairRows = 4;  // activation rows one register block takes

// Sums of ROWS activation rows, `n` columns, a multiple of 4.
template <int ROWS> HEADWAY_INLINE void sum_pairs(I* sums, const int16_t* w, const int16_t* x, int64_t ldx, int64_t n) {
  for (int r = 0; r < ROWS; ++r) sums[r] = set1i(0);
  for (; n > 0; n -= 2, w += 32, x += 2) {
    const LanesI line = load_i((const int32_t*)w).v, high = line >> 16, low = (LanesI)((LanesU)line << 16) >> 16;
    for (int r = 0; r < ROWS; ++r) sums[r].v += low * (int32_t)x[r * ldx] + high * (int32_t)x[r * ldx + 1];
  }
}
HEADWAY_INLINE void store_i16(int16_t* p, I x) {
  for (int i = 0; i < 16; ++i) p[i] = (int16_t)x.v[i];
}
// A line of 8-bit codes, byte 4 r + c, to two lines of pairs.
HEADWAY_INLINE void widen_pairs(const uint8_t* line, int zero, int16_t* to) {
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 4; ++c) to[c / 2 * 32 + r * 2 + c % 2] = (int16_t)(line[r * 4 + c] - zero);
}

}  // namespace
}  // namespace headway

#include "../w8a16_kernel.h"

HEADWAY_W8A16(w8a16_portable)
