// What follows a convolution: scale, shift, residual and bounds (Finish in kernels.h). Included after ops_kernel.h.
#pragma once
#include "ops_kernel.h"

namespace headway {
namespace {

// 16 channels from `at` of one pixel, whose residual is given.
HEADWAY_INLINE F finished(F v, const Finish* f, const float* residual, int64_t at) {
  v = fma(v, load(f->scale + at), load(f->shift + at));
  if (residual) v = v + load(residual + at);
  return clamp(v, f->low, f->high);
}

// In place, channels [begin, end) of pixels that lie `ldy` apart without gaps: from the last to the first, since a
// pixel moves away from its start by the gaps before it.
static void finish(float* y, int64_t ldy, int64_t pixels, int64_t begin, int64_t out, int64_t end, const Finish* f) {
  for (int64_t p = pixels - 1; p >= 0; --p) {
    const float* from = y + p * ldy;
    float* to = y + p * ldy + (f->gap ? p / f->width * f->gap : 0);
    const float* residual = f->residual ? f->residual + p * f->ldr : nullptr;
    for (int64_t c = begin; c < end; c += 16) {
      const int64_t left = out - c;
      const F v = left >= 16 ? load(from + c) : load_part(from + c, left > 0 ? (int)left : 0);
      store(to + c, finished(v, f, residual, c));
    }
    if (f->gap && (p + 1) % f->width == 0 && p + 1 < pixels)
      for (int64_t i = 0; i < f->gap; i += 16) store(to + ldy + begin + i, zero());
  }
}

}  // namespace
}  // namespace headway
