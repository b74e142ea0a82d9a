// Attention of a few query rows over pages of one KV head (layouts in kernels.h). Included after ops_kernel.h.
#pragma once
#include "attention_codes.h"
#include "attention_float.h"

namespace headway {
namespace {

static void kv_write(const PageShape* shape, void* page, int64_t at, const float* k, const float* v) {
  if (shape->store == kPageInt8) return kv_write_codes<8, 8>(shape, (uint8_t*)page, at, k, v);
  if (shape->store == kPageInt4) return kv_write_codes<4, 4>(shape, (uint8_t*)page, at, k, v);
  if (shape->store == kPageK8V4) return kv_write_codes<8, 4>(shape, (uint8_t*)page, at, k, v);
  const int64_t d = shape->head_dim, dp = shape->padded_dim, per_head = kPage * (d + dp);
  for (int64_t h = 0; h < shape->kv_heads; ++h, k += d, v += d) {
    const int64_t key = h * per_head + (at / 16) * d * 16 + at % 16;
    const int64_t value = h * per_head + kPage * d + at * dp;
    if (shape->store == kPageF16) {
      uint16_t* to = (uint16_t*)page;
      uint16_t line[16];
      for (int64_t i = 0; i < d; i += 16) {
        const int n = d - i < 16 ? (int)(d - i) : 16;
        store_f16(line, load_n(k + i, n));
        for (int j = 0; j < n; ++j) to[key + (i + j) * 16] = line[j];
        store_f16(to + value + i, load_n(v + i, n));
      }
    } else {
      float* to = (float*)page;
      for (int64_t i = 0; i < d; ++i) to[key + i * 16] = k[i];
      for (int64_t i = 0; i < d; i += 16) store(to + value + i, load_n(v + i, d - i < 16 ? (int)(d - i) : 16));
    }
  }
}

static void attend(const AttendArgs* a) {
  const int64_t d = a->shape.head_dim, dp = a->shape.padded_dim;
  const size_t key_bytes = page_key_bytes(&a->shape), head_bytes = page_head_bytes(&a->shape);
  const bool half = a->shape.store == kPageF16, coded = page_coded(&a->shape);
  const bool tall = !coded && a->rows > kFewRows;
  float* s = a->scratch;  // [rows that are scored together][64]
  float* rest = s + (tall ? a->rows : 4) * kPage;
  const Query* queries = coded ? encode_queries(a, rest) : nullptr;
  for (int64_t i = a->key_begin / kPage; i * kPage < a->key_end; ++i) {
    PageView page;
    page.d = d;
    page.dp = dp;
    page.first = i * kPage;
    page.begin = (int32_t)(a->key_begin > page.first ? a->key_begin - page.first : 0);
    page.end = (int32_t)(a->key_end - page.first < kPage ? a->key_end - page.first : kPage);
    page.k = (const char*)a->pages[i] + (size_t)a->kv_head * head_bytes;
    page.v = (const char*)page.k + key_bytes;
    const bool more = (i + 1) * kPage < a->fetch_end;
    page.next = more ? (const char*)a->pages[i + 1] + (size_t)a->kv_head * head_bytes : nullptr;
    if (coded) {
      if (a->shape.store == kPageInt8) page_all_codes<8, 8>(page, a, queries, s);
      else if (a->shape.store == kPageInt4) page_all_codes<4, 4>(page, a, queries, s);
      else page_all_codes<8, 4>(page, a, queries, s);
    } else if (tall) {
      float* wide = rest + (a->rows + 15) / 16 * 16;
      if (half) page_tall<true>(page, a, s, rest, wide);
      else page_tall<false>(page, a, s, rest, wide);
    } else if (half) {
      page_all<true>(page, a, s);
    } else {
      page_all<false>(page, a, s);
    }
  }
}

static void attend_merge(float* m, float* l, float* o, const float* m2, const float* l2, const float* o2, int64_t rows,
                         int64_t dp) {
  for (int64_t r = 0; r < rows; ++r, o += dp, o2 += dp) {
    if (l2[r] == 0.0f) continue;  // saw no key
    if (l[r] == 0.0f) {
      m[r] = m2[r];
      l[r] = l2[r];
      for (int64_t i = 0; i < dp; i += 16) store(o + i, load(o2 + i));
      continue;
    }
    const float top = m[r] > m2[r] ? m[r] : m2[r];
    float weights[16];
    store(weights, exponential(set1(m[r] - top)));
    const float a = weights[0];
    store(weights, exponential(set1(m2[r] - top)));
    const float b = weights[0];
    m[r] = top;
    l[r] = __builtin_fmaf(l2[r], b, l[r] * a);
    for (int64_t i = 0; i < dp; i += 16) store(o + i, fma(load(o2 + i), set1(b), load(o + i) * set1(a)));
  }
}

static void attend_finish(const PageShape* shape, const float* l, float* o, int64_t rows, float* const* out) {
  const int64_t d = shape->head_dim;
  for (int64_t r = 0; r < rows; ++r, o += shape->padded_dim) {
    if (page_value_bits(shape) == 4) walsh(o, d, o);
    const F inverse = set1(1.0f / l[r]);
    for (int64_t i = 0; i < d; i += 16) {
      const F v = load(o + i) * inverse;
      if (d - i >= 16) store(out[r] + i, v);
      else store_part(out[r] + i, v, (int)(d - i));
    }
  }
}

}  // namespace
}  // namespace headway
