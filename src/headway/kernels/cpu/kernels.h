// The table of kernels: one instance per instruction set, filled by portable/, avx2/ and avx512/ from the same
// sources (*_kernel.h). Every level gives the same bits: sums run in the same order with the same fused operations.
// Plain C types only: this header is included by translation units compiled for one level.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway {

// ---- int8 activations -------------------------------------------------------------------------------------------
// Columns in blocks of 32, each block of each row with its own scale sx = max|x| / 127, codes -127..127. `parts` is
// 1, or 2 where weights have groups of 16 and need sums of half blocks. Rows in panels of 16 (the last may have fewer),
// so that a quad of a panel is one cache line and a kernel reads a panel as one stream.
//   codes  int8  [panel][block][8 quads][row][4]
//   meta   4 B   [panel][block][1 + 2 parts][row]:  sx;  sx * sum of codes, one per part;  sum of codes, per part (float)
// A block with an activation that is not finite has sx = NaN. One smaller than 2^-100 throughout counts as zero.
constexpr int64_t kPanelRows = 16;
static inline size_t int8_codes_bytes(int64_t rows, int64_t blocks) {
  return ((size_t)rows * (size_t)blocks * 32 + 63) / 64 * 64;
}
static inline size_t int8_bytes(int64_t rows, int64_t blocks, int64_t parts) {
  return int8_codes_bytes(rows, blocks) + (size_t)rows * (size_t)blocks * (size_t)(1 + 2 * parts) * 4;
}

// ---- integer weights --------------------------------------------------------------------------------------------
// A tile is 16 rows; its groups follow along the columns: header, then codes, 32 columns at a time.
//   header   16 scales, then 16 minima if has_min; f16 or f32. Groups of 16: two headers before each 32 columns.
//   4 bits   4 lines of 64 B: byte 4 r + c of line j = code[row r][4 j + c] | code[row r][16 + 4 j + c] << 4
//   8 bits   8 lines of 64 B: byte 4 r + c of line j = code[row r][4 j + c]
// Weight = scale * (code - zero) + minimum.
struct IntTiles {
  const uint8_t* data;
  size_t tile_bytes;
  int64_t out;      // rows
  int64_t blocks;   // padded columns / 32
  int64_t group;    // columns per group: 16, or a multiple of 32
  int bits;         // 4 or 8
  int zero;
  int has_min;
  int wide_header;  // f32 instead of f16
};

// ---- attention --------------------------------------------------------------------------------------------------
// A page holds kPageTokens tokens of one layer, KV head after KV head.
//   f32, f16   K [4][head_dim][16 keys]; V [64][padded dim], padded dim = head_dim rounded up to 16
//   int8       K [4][quads][16 keys][4 dims], V [padded dim / 16][16 quads][16 dims][4 keys], both bytes code + 128;
//              then 64 f32 scales of K and 64 of V: value = scale * code, one scale per key, codes -127..127
//   int4       the same in nibbles, value = scale * (2 code - 15): a byte of K holds quads 2 i (low) and 2 i + 1 of one
//              key, a byte of V dims i (low) and i + 16 of 32, so that no two keys share one. K and V are rotated:
//              walsh_block(head_dim) dimensions at a time go through a Walsh-Hadamard transform of length 1
//   k8v4       keys as in int8, values as in int4
constexpr int kPageTokens = 64;
constexpr int kSpanTokens = 512;  // keys whose softmax is accumulated apart, then merged in order

enum PageStore { kPageF32 = 0, kPageF16 = 1, kPageInt8 = 2, kPageInt4 = 3, kPageK8V4 = 4 };
struct PageShape {
  int64_t kv_heads, head_dim, padded_dim;
  int store;  // PageStore
};
constexpr int kMostCodedDim = 1024;  // dimensions of a head in pages of integers
static inline int page_coded(const PageShape* s) { return s->store >= kPageInt8; }
static inline int page_key_bits(const PageShape* s) {
  return s->store == kPageF32 ? 32 : s->store == kPageF16 ? 16 : s->store == kPageInt4 ? 4 : 8;
}
static inline int page_value_bits(const PageShape* s) { return s->store == kPageK8V4 ? 4 : page_key_bits(s); }
static inline int64_t page_quads(const PageShape* s) { return (s->head_dim + 3) / 4; }
static inline size_t page_key_bytes(const PageShape* s) {  // all keys of one head
  const int64_t quads = page_quads(s);
  if (page_coded(s)) return kPageTokens * 4 * (size_t)(page_key_bits(s) == 4 ? (quads + 1) / 2 : quads);
  return kPageTokens * (size_t)s->head_dim * (size_t)(page_key_bits(s) / 8);
}
static inline size_t page_value_bytes(const PageShape* s) {
  if (page_value_bits(s) == 4) return kPageTokens * 16 * (size_t)((s->padded_dim + 16) / 32);
  return kPageTokens * (size_t)s->padded_dim * (size_t)(page_value_bits(s) / 8);
}
static inline size_t page_head_bytes(const PageShape* s) {
  return page_key_bytes(s) + page_value_bytes(s) + (page_coded(s) ? 2 * kPageTokens * 4 : 0);
}
static inline int64_t walsh_block(int64_t head_dim) { return head_dim & -head_dim; }

// Query rows that share one KV head, against the keys [key_begin, key_end) of one sequence (within one span).
struct AttendArgs {
  PageShape shape;
  const void* const* pages;  // page i holds tokens [64 i, 64 i + 64); only pages in range are read
  int64_t kv_head;
  int64_t rows;
  const float* const* q;     // rows pointers to head_dim floats
  const int32_t* lo;         // row r sees the keys [lo[r], hi[r])
  const int32_t* hi;
  int64_t key_begin, key_end;
  int64_t fetch_end;         // keys up to here are read soon: pages are fetched ahead
  float scale, softcap;
  float* m;                  // in and out, per row: running maximum (-inf at first), sum, weighted values
  float* l;
  float* o;                  // [rows][padded_dim]
  float* scratch;            // attend_scratch_floats(shape, rows)
};
constexpr int64_t kFewRows = 8;  // more are scored together before they are summed together
static inline size_t attend_scratch_floats(const PageShape* s, int64_t rows) {
  if (page_coded(s)) return (size_t)(rows * (page_quads(s) + 5)) + 4 * kPageTokens;
  if (rows <= kFewRows) return 4 * kPageTokens;
  return (size_t)(rows * kPageTokens + (rows + 15) / 16 * 16 + s->padded_dim * kPageTokens);
}

// ---- convolution ------------------------------------------------------------------------------------------------
// What follows a product, while it is in registers: y = clamp(y * scale + shift + residual), channel by channel. Whole
// tiles are written: scale and shift have zeros up to the end of the last, and so has what comes of it.
struct Finish {
  const float* scale;
  const float* shift;
  const float* residual;  // pixels `ldr` floats apart; null: none
  int64_t ldr;
  float low, high;
  int64_t width, gap;     // `gap` floats are left out after every `width` pixels: the padding of an image
};

struct Kernels {
  // y[r][0..tile_rows) (+)= sum_c x[r][c] panel[c][0..tile_rows), columns in order.
  void (*dense_panel)(const float* panel, int64_t cols, const float* x, int64_t ldx, int64_t rows, float* y,
                      int64_t ldy, int64_t tile_rows, int accumulate);
  // Packed dense tiles [tile][padded][16], storage 0 f32, 1 f16, 2 bf16, of which the first `cols` columns count.
  // `finish` may be null.
  void (*dense)(const void* data, int storage, int64_t padded, int64_t cols, int64_t out, const float* x, int64_t ldx,
                int64_t rows, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end, const Finish* finish);
  void (*dense_expand)(const void* data, int storage, int64_t cols, int64_t tile, int64_t col_begin, int64_t col_end,
                       float* out);

  void (*quantise)(const float* x, int64_t ldx, int64_t rows, int64_t blocks, int64_t parts, int64_t block_begin,
                   int64_t block_end, void* out);
  void (*integer)(const IntTiles* w, const void* acts, int64_t rows, float* y, int64_t ldy, int64_t tile_begin,
                  int64_t tile_end, void* scratch);
  void (*integer_expand)(const IntTiles* w, int64_t tile, int64_t col_begin, int64_t col_end, float* out);

  void (*rms_norm)(const float* x, const float* w, float eps, int64_t n, float* y);  // y may be x
  void (*add)(float* x, const float* a, int64_t n);                                  // x += a
  void (*scale)(float* x, float s, int64_t n);
  void (*softcap)(float* x, float cap, int64_t n);
  void (*rope)(float* x, int64_t heads, int64_t head_dim, const float* cosine, const float* sine);
  void (*glu)(float* gate, const float* up, int64_t n, int kind);  // gate = f(gate) * up; 0 silu, 1 gelu (tanh)
  // y = (x - mean) / sqrt(variance + eps) * w + b, variance over n; y may be x.
  void (*layer_norm)(const float* x, const float* w, const float* b, float eps, int64_t n, float* y);
  void (*gelu)(float* x, const float* bias, int64_t n, int kind);  // x = gelu(x + bias); 0 with erf, 1 with tanh
  // In place, channels [begin, end) of pixels, whole tiles; those from `out` on come as if they had been zero. Gaps
  // (multiples of 16 floats, where pixels are one tile) are filled with zeros.
  void (*finish)(float* y, int64_t ldy, int64_t pixels, int64_t begin, int64_t out, int64_t end, const Finish* finish);
  int64_t (*argmax)(const float* x, int64_t n);                    // the first of equals; -1 if any is NaN

  double (*log_sum_exp)(const float* x, int64_t n, float* top);
  double (*divergence)(const float* x, double x_norm, const float* y, double y_norm, int64_t n);

  // One token's K and V of all heads ([kv_heads][head_dim] each) into slot `at` of a page.
  void (*kv_write)(const PageShape* shape, void* page, int64_t at, const float* k, const float* v);
  void (*attend)(const AttendArgs* args);
  // Fold (m2, l2, o2) into (m, l, o), per row.
  void (*attend_merge)(float* m, float* l, float* o, const float* m2, const float* l2, const float* o2, int64_t rows,
                       int64_t padded_dim);
  // out[r][0..head_dim) = o / l, turned back where the store rotates; o is used up.
  void (*attend_finish)(const PageShape* shape, const float* l, float* o, int64_t rows, float* const* out);

  uint64_t (*read)(const void* data, size_t bytes);  // touches every byte; the roof that kernels are judged by
};

extern const Kernels kernels_portable;
#if HEADWAY_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels& kernels();  // of the level in use

}  // namespace headway
