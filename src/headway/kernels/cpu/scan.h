// The selective scan of Mamba and the filter before it (scan_kernel.h says what bounds them). One table per instruction
// set, the same bits from each. Plain C types only.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway {

// Tokens in the order of the scan: distances between rows are negative where it runs from the last token to the first.
//   h = exp(dt a) h + dt u b        per channel, `state` values of it
//   y = (h . c + d u + added) silu(gate)
struct ScanArgs {
  const float* u;
  const float* dt;     // of softplus(dt) where `softplus` is set
  const float* b;      // [token][state]
  const float* c;
  const float* added;  // null: none
  const float* gate;   // null: none
  float* y;
  int64_t ldu, lddt, ldb, ldc, ldadded, ldgate, ldy;
  const float* a;      // [state][lda], times log2 e
  int64_t lda;
  const float* d;
  float* h;            // [channels / 16, rounded up][state][16]: zeros at first
  int64_t tokens, channels, state;
  int softplus;
};

// y = f(bias + sum over lags of x[token - lag] w[taps - 1 - lag]), channel by channel; f: silu where it is set.
struct FilterArgs {
  const float* x;
  const float* w;      // [taps][channels]
  const float* bias;   // null: none
  float* y;
  int64_t ldx, ldy;
  int64_t before;      // tokens that lie before the first: those further back count as zeros
  int64_t tokens, channels, taps;
  int silu;
};

struct ScanKernels {
  void (*scan)(const ScanArgs* args);
  void (*filter)(const FilterArgs* args);
};

extern const ScanKernels scan_portable;
#if HEADWAY_X86
extern const ScanKernels scan_avx2;
extern const ScanKernels scan_avx512;
#endif

}  // namespace headway
