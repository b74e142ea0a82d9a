// Dense tiles: [tile][column][16 rows], float32 activations. Included after a level's simd.h.
//
// Per 16 x 1 weights: 64 B (f32) or 32 B (f16, bf16), one load, one broadcast and one FMA per activation row. GEMV is
// bound by bytes; several tiles are walked together so that their sums, each a chain in column order, overlap.
// GEMM with what follows it (AVX2, one Zen 3 core of 97 GFLOP/s, from the caches): 86 to 91 GFLOP/s at 112 to 1,152
// columns; 58 at 16 columns, where every 12 FMAs' sums are stored after 16 steps.
#pragma once
#include "kernels.h"
#include "store_kernel.h"

namespace headway {
namespace {

template <int STORAGE> HEADWAY_INLINE F dense_load(const void* p, int64_t at) {
  if constexpr (STORAGE == 0) return load((const float*)p + at);
  else if constexpr (STORAGE == 1) return load_f16((const uint16_t*)p + at);
  else return load_bf16((const uint16_t*)p + at);
}

constexpr int64_t kDenseAhead = 4096;  // bytes fetched ahead of a stream of tiles

template <int STORAGE> HEADWAY_INLINE void dense_fetch(const void* p, int64_t k) {
  constexpr int64_t step = STORAGE == 0 ? 64 : 32;
  if (step == 64 || k % 2 == 0) __builtin_prefetch((const char*)p + k * step + kDenseAhead, 0, 3);
}

// COLS activation rows against one tile. FETCH: the tile comes from memory, not from a cache.
template <int STORAGE, int COLS, bool FETCH>
HEADWAY_INLINE void dense_block(const void* w, int64_t cols, const float* x, int64_t ldx, float* y, int64_t ldy,
                                int64_t tile_rows, bool accumulate) {
  F acc[COLS];
  for (int c = 0; c < COLS; ++c)
    acc[c] = accumulate ? (tile_rows >= 16 ? load(y + c * ldy) : load_part(y + c * ldy, (int)tile_rows)) : zero();
  for (int64_t k = 0; k < cols; ++k) {
    if constexpr (FETCH) dense_fetch<STORAGE>(w, k);
    const F v = dense_load<STORAGE>(w, k * 16);
    for (int c = 0; c < COLS; ++c) acc[c] = fma(v, set1(x[c * ldx + k]), acc[c]);
  }
  for (int c = 0; c < COLS; ++c) store_rows(y + c * ldy, acc[c], tile_rows);
}

template <int STORAGE>
static void dense_tile(const void* w, int64_t cols, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy,
                       int64_t tile_rows, bool accumulate) {
  int64_t r = 0;
  if (rows >= kDenseColumns) {
    dense_block<STORAGE, kDenseColumns, true>(w, cols, x, ldx, y, ldy, tile_rows, accumulate);
    r = kDenseColumns;
  }
  for (; r + kDenseColumns <= rows; r += kDenseColumns)
    dense_block<STORAGE, kDenseColumns, false>(w, cols, x + r * ldx, ldx, y + r * ldy, ldy, tile_rows, accumulate);
  for (; r + 2 <= rows; r += 2)
    dense_block<STORAGE, 2, true>(w, cols, x + r * ldx, ldx, y + r * ldy, ldy, tile_rows, accumulate);
  for (; r < rows; ++r)
    dense_block<STORAGE, 1, true>(w, cols, x + r * ldx, ldx, y + r * ldy, ldy, tile_rows, accumulate);
}

static void dense_panel(const float* panel, int64_t cols, const float* x, int64_t ldx, int64_t rows, float* y,
                        int64_t ldy, int64_t tile_rows, int accumulate) {
  dense_tile<0>(panel, cols, x, ldx, rows, y, ldy, tile_rows, accumulate != 0);
}

// COLS activation rows against TILES tiles, for GEMM: on AVX-512 24 sums, 14 loads for 24 FMAs, so that the FMA units
// are the limit (one tile and 8 rows: 9 loads for 8). FETCH: bring a later tile, at `ahead`, into the second level.
template <int STORAGE, int TILES, int COLS, bool FETCH>
static void dense_panes(const char* w, size_t stride, const char* ahead, int64_t cols, const float* x, int64_t ldx,
                        float* y, int64_t ldy, int64_t row, int64_t last_rows, int64_t at, const Finish* finish) {
  F acc[TILES][COLS];
  for (int t = 0; t < TILES; ++t)
    for (int c = 0; c < COLS; ++c) acc[t][c] = zero();
  x += row * ldx;
  for (int64_t k = 0; k < cols; ++k) {
    if constexpr (FETCH)
      if (STORAGE == 0 || k % 2 == 0) __builtin_prefetch(ahead + k * (STORAGE == 0 ? 64 : 32), 0, 2);
    F v[TILES];
    for (int t = 0; t < TILES; ++t) v[t] = dense_load<STORAGE>(w + (size_t)t * stride, k * 16);
#pragma GCC unroll 32
    for (int c = 0; c < COLS; ++c) {
      const F a = set1(x[c * ldx + k]);
      for (int t = 0; t < TILES; ++t) acc[t][c] = fma(v[t], a, acc[t][c]);
    }
  }
  dense_store<TILES, COLS>(acc, y, ldy, row, last_rows, at, finish);
}

template <int STORAGE, int TILES, int COLS>
static void dense_pane(const char* w, size_t stride, int64_t cols, const float* x, int64_t ldx, int64_t rows, float* y,
                       int64_t ldy, int64_t last_rows, int64_t at, const Finish* finish) {
  int64_t r = 0;
  for (int t = 0; t < TILES && r + COLS <= rows; ++t, r += COLS)
    dense_panes<STORAGE, TILES, COLS, true>(w, stride, w + (size_t)(TILES + t) * stride, cols, x, ldx, y, ldy, r,
                                            last_rows, at, finish);
  for (; r + COLS <= rows; r += COLS)
    dense_panes<STORAGE, TILES, COLS, false>(w, stride, nullptr, cols, x, ldx, y, ldy, r, last_rows, at, finish);
  for (; r + 4 <= rows; r += 4)
    dense_panes<STORAGE, TILES, 4, false>(w, stride, nullptr, cols, x, ldx, y, ldy, r, last_rows, at, finish);
  for (; r < rows; ++r)
    dense_panes<STORAGE, TILES, 1, false>(w, stride, nullptr, cols, x, ldx, y, ldy, r, last_rows, at, finish);
}

template <int STORAGE>
static void dense_tiles(const void* data, int64_t padded, int64_t cols, int64_t out, const float* x, int64_t ldx,
                        int64_t rows, float* y, int64_t ldy, int64_t begin, int64_t end, const Finish* finish) {
  const size_t stride = (size_t)padded * 16 * (STORAGE == 0 ? 4 : 2);
  const char* base = (const char*)data;
  int64_t tile = begin;
  if (rows == 1 && !finish)
    for (; tile + kDenseTiles <= end && (tile + kDenseTiles) * 16 <= out; tile += kDenseTiles) {
      F acc[kDenseTiles];
      for (int t = 0; t < kDenseTiles; ++t) acc[t] = zero();
      for (int64_t k = 0; k < cols; ++k) {
        const F a = set1(x[k]);
        for (int t = 0; t < kDenseTiles; ++t) {
          const char* w = base + (size_t)(tile + t) * stride;
          dense_fetch<STORAGE>(w, k);
          acc[t] = fma(dense_load<STORAGE>(w, k * 16), a, acc[t]);
        }
      }
      for (int t = 0; t < kDenseTiles; ++t) store(y + (tile + t) * 16, acc[t]);
    }
  const auto left = [&](int64_t last) { return out - last * 16 < 16 ? out - last * 16 : 16; };
  if (rows >= kPaneTiles * kPaneColumns)
    for (; tile + kPaneTiles <= end; tile += kPaneTiles)
      dense_pane<STORAGE, kPaneTiles, kPaneColumns>(base + (size_t)tile * stride, stride, cols, x, ldx, rows,
                                                    y + tile * 16, ldy, left(tile + kPaneTiles - 1), tile * 16, finish);
  for (; tile < end; ++tile) {
    if (finish || rows >= kTileColumns)
      dense_pane<STORAGE, 1, kTileColumns>(base + (size_t)tile * stride, stride, cols, x, ldx, rows, y + tile * 16, ldy,
                                           left(tile), tile * 16, finish);
    else
      dense_tile<STORAGE>(base + (size_t)tile * stride, cols, x, ldx, rows, y + tile * 16, ldy, left(tile), false);
  }
}

static void dense(const void* data, int storage, int64_t padded, int64_t cols, int64_t out, const float* x, int64_t ldx,
                  int64_t rows, float* y, int64_t ldy, int64_t begin, int64_t end, const Finish* finish) {
  if (storage == 0) dense_tiles<0>(data, padded, cols, out, x, ldx, rows, y, ldy, begin, end, finish);
  else if (storage == 1) dense_tiles<1>(data, padded, cols, out, x, ldx, rows, y, ldy, begin, end, finish);
  else dense_tiles<2>(data, padded, cols, out, x, ldx, rows, y, ldy, begin, end, finish);
}

static void dense_expand(const void* data, int storage, int64_t cols, int64_t tile, int64_t col_begin, int64_t col_end,
                         float* out) {
  for (int64_t k = col_begin; k < col_end; ++k, out += 16) {
    const int64_t at = (tile * cols + k) * 16;
    store(out, storage == 0 ? dense_load<0>(data, at) : storage == 1 ? dense_load<1>(data, at) : dense_load<2>(data, at));
  }
}

}  // namespace
}  // namespace headway
