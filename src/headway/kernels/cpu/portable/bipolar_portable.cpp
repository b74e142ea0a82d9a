// Bipolar kernels in plain C++: counting by shifts and masks, 16 rows at a time.
#include "simd.h"

namespace headway::bipolar {
namespace {
constexpr int64_t kChunk = 32;
}
}  // namespace headway::bipolar

#include "../bipolar_kernel.h"
#include "../bipolar_quantise.h"
#include "../bipolar_recover.h"

namespace headway::bipolar {
namespace {

HEADWAY_INLINE I bits_in(I a) {
  LanesU v = (LanesU)a.v;
  v = v - ((v >> 1) & 0x55555555u);
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0fu;
  return {(LanesI)((v * 0x01010101u) >> 24)};
}

template <int M, int COLS>
HEADWAY_INLINE void count_chunk(const uint8_t* w, int bits, int64_t blocks, const uint32_t* x, int64_t stride, I* acc) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int i = 0; i < bits; ++i) {
      const I line = load_i((const int32_t*)(w + (b * bits + i) * 64));
      for (int c = 0; c < COLS; ++c)
        for (int j = 0; j < M; ++j)
          acc[c] = acc[c] + shift_left(bits_in({line.v ^ (int32_t)x[b * stride + c * M + j]}), i + j);
    }
}

int64_t roof(int64_t rounds) {
  I x = set1i(0x5a5a5a5a), sum = set1i(0);
  for (int64_t round = 0; round < rounds; ++round) {
    x.v = x.v ^ (int32_t)round;
    sum = sum + bits_in(x);
  }
  volatile int32_t seen = sum.v[0];
  (void)seen;
  return rounds * 512;
}

}  // namespace
}  // namespace headway::bipolar

HEADWAY_BIPOLAR(portable_kernels, "portable")
