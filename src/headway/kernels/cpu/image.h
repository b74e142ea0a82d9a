// Kernels of networks over images and tokens (image_net.h) that are no products of a packed weight: convolutions that
// read their taps where they lie, and what stands between products. One table per instruction set, the same bits from
// each. Plain C types only.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway {

// Rows of a depthwise convolution's output, for 16 channels.
struct DepthwiseArgs {
  const float* x;        // [pixels][16], `width` of them a row: the first row's first tap; padding is there as zeros
  int64_t width;
  const float* w;        // [kernel * kernel][ldw]
  int64_t ldw;
  const float* shift;
  int64_t kernel, stride;  // kernel 2, 3, 5 or 7, stride 1 or 2
  float low, high;
  float* y;              // pixels `ldy` floats apart
  int64_t rows, out, ldy;  // out: pixels of a row
};

// Rows of a convolution's output, for 16 channels.
struct WindowArgs {
  const float* x;        // the first row's first tap; pixels of `channels` floats, `width` of them a row, padding included
  int64_t channels, width;
  const float* w;        // [kernel][kernel][channels][ldw]
  int64_t ldw;
  const float* shift;
  int64_t kernel, stride;
  float low, high;
  float* y;              // pixels `ldy` floats apart, rows `row` floats
  int64_t rows, out, ldy, row;
};

enum ImageAct { kActClamp, kActGelu, kActGeluTanh, kActSilu, kActHardSwish, kActHardSigmoid, kActSigmoid, kActPrelu };

struct ImageKernels {
  void (*depthwise)(const DepthwiseArgs* args);
  void (*window)(const WindowArgs* args);
  // In place, `n` floats of each of `rows` rows; low and high: of kActClamp; slope: of kActPrelu, n of them.
  void (*activate)(float* x, int64_t ld, int64_t rows, int64_t n, int act, float low, float high, const float* slope);
  void (*multiply)(float* x, const float* a, int64_t n);                                             // x *= a
  void (*scale_shift)(const float* x, const float* scale, const float* shift, int64_t n, float* y);  // y may be x
  void (*squares)(float* sums, const float* x, const float* mean, int64_t n);                        // += (x - mean)^2
  void (*softmax)(float* x, int64_t n);
};

extern const ImageKernels image_portable;
#if HEADWAY_X86
extern const ImageKernels image_avx2;
extern const ImageKernels image_avx512;
#endif

const ImageKernels& image_kernels();  // of the level in use

}  // namespace headway
