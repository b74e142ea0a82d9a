// Attention over the plain paged store: which rows go together, and what each item of that plan does.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "batch.h"
#include "batch_rows.h"
#include "kernels.h"

namespace headway {
namespace {

constexpr int64_t kTileTokens = 16;          // query tokens of one attention item
constexpr int64_t kSplitTokens = 8;          // parts shorter than this have their keys split into spans
constexpr double kSerialAttention = 60'000;  // multiply-adds of attention that stay with the caller

}  // namespace

// Which rows attend together. Rows of one part are consecutive, and their positions too.
const Batch::AttentionPlan& Batch::plan(int64_t window, int lanes) {
  for (const AttentionPlan& known : plans_)
    if (known.window == window) return known;
  plans_.emplace_back();
  AttentionPlan& plan = plans_.back();
  plan.window = window;
  const int64_t shared = config_.heads / config_.kv_heads;
  int64_t slots = 0;
  const auto n = int64_t(rows_.size());
  for (const Row& row : rows_) {
    plan.hi.push_back(int32_t(row.position + 1));
    plan.lo.push_back(window > 0 ? int32_t(std::max<int64_t>(0, row.position + 1 - window)) : 0);
    plan.work += double(plan.hi.back() - plan.lo.back()) * double(config_.heads * config_.head_dim * 2);
  }
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin;
    while (end < n && rows_[size_t(end)].part == rows_[size_t(begin)].part) ++end;
    const bool split = end - begin < kSplitTokens && lanes > 1;
    for (int64_t row = begin; row < end; row += kTileTokens) {
      const int64_t tokens = std::min(kTileTokens, end - row);
      const int64_t first = plan.lo[size_t(row)] / kSpanTokens;
      const int64_t last = (plan.hi[size_t(row + tokens - 1)] - 1) / kSpanTokens;
      for (int64_t head = 0; head < config_.kv_heads; ++head) {
        Item item{rows_[size_t(row)].part, head, row, tokens, -1, last - first + 1, 0};
        if (!split || first == last) {
          plan.items.push_back(item);
          continue;
        }
        item.slot = slots;
        plan.merges.push_back(item);
        for (int64_t span = first; span <= last; ++span) {
          item.span = span;
          item.slot = slots;
          slots += tokens * shared;
          plan.items.push_back(item);
        }
      }
    }
    begin = end;
  }
  partials_.grow(size_t(slots) * size_t(2 + kv_.shape.padded_dim) * sizeof(float) + 64, Owner::scratch);
  return plan;
}

void Batch::attend_item(const Item& item, const AttentionPlan& plan, int64_t layer, char* scratch) {
  const Kernels& k = kernels();
  const int64_t shared = config_.heads / config_.kv_heads, count = item.tokens * shared;
  const int64_t dp = kv_.shape.padded_dim, d = config_.head_dim;
  auto* floats = reinterpret_cast<float*>(scratch);
  const auto take = [&floats](int64_t n) {
    float* p = floats;
    floats += round_up(n, 16);
    return p;
  };
  AttendArgs args{};
  args.scratch = take(int64_t(attend_scratch_floats(&kv_.shape, count)));
  float *m = take(count), *l = take(count), *o = take(count * dp);
  float *span_m = take(count), *span_l = take(count), *span_o = take(count * dp);
  auto* lo = reinterpret_cast<int32_t*>(take(count));
  auto* hi = reinterpret_cast<int32_t*>(take(count));
  auto** q = reinterpret_cast<const float**>(take(2 * count));
  auto** out = reinterpret_cast<float**>(take(2 * count));
  int32_t least = INT32_MAX, most = 0;
  for (int64_t t = 0; t < item.tokens; ++t)
    for (int64_t g = 0; g < shared; ++g) {
      const int64_t r = t * shared + g, offset = (item.kv_head * shared + g) * d;
      q[r] = this->q(item.row + t) + offset;
      out[r] = attended(item.row + t) + offset;
      lo[r] = plan.lo[size_t(item.row + t)];
      hi[r] = plan.hi[size_t(item.row + t)];
      least = std::min(least, lo[r]);
      most = std::max(most, hi[r]);
    }
  args.shape = kv_.shape;
  args.pages = sequences_[size_t(item.part)]->pages(layer);
  args.kv_head = item.kv_head;
  args.rows = count;
  args.q = q;
  args.lo = lo;
  args.hi = hi;
  args.scale = config_.query_scale;
  args.softcap = config_.attention_softcap;
  const auto run = [&](int64_t span, float* to_m, float* to_l, float* to_o) {
    std::fill_n(to_m, count, -INFINITY);
    std::memset(to_l, 0, size_t(count) * sizeof(float));
    std::memset(to_o, 0, size_t(count * dp) * sizeof(float));
    args.key_begin = std::max<int64_t>(least, span * kSpanTokens);
    args.key_end = std::min<int64_t>(most, (span + 1) * kSpanTokens);
    args.fetch_end = item.span >= 0 ? args.key_end : most;
    args.m = to_m;
    args.l = to_l;
    args.o = to_o;
    k.attend(&args);
  };
  if (item.span >= 0) {
    float* slot = partials_.as<float>() + item.slot * (2 + dp);
    run(item.span, slot, slot + count, slot + 2 * count);
    return;
  }
  const int64_t first = least / kSpanTokens, last = (most - 1) / kSpanTokens;
  run(first, m, l, o);
  for (int64_t span = first + 1; span <= last; ++span) {
    run(span, span_m, span_l, span_o);
    k.attend_merge(m, l, o, span_m, span_l, span_o, count, dp);
  }
  k.attend_finish(&kv_.shape, l, o, count, out);
}

void Batch::merge_item(const Item& item) {
  const Kernels& k = kernels();
  const int64_t shared = config_.heads / config_.kv_heads, count = item.tokens * shared;
  const int64_t dp = kv_.shape.padded_dim, d = config_.head_dim;
  float* into = partials_.as<float>() + item.slot * (2 + dp);
  for (int64_t i = 1; i < item.spans; ++i) {
    const float* from = into + i * count * (2 + dp);
    k.attend_merge(into, into + count, into + 2 * count, from, from + count, from + 2 * count, count, dp);
  }
  for (int64_t t = 0; t < item.tokens; ++t)
    for (int64_t g = 0; g < shared; ++g) {
      float* out = attended(item.row + t) + (item.kv_head * shared + g) * d;
      const int64_t r = t * shared + g;
      k.attend_finish(&kv_.shape, into + count + r, into + 2 * count + r * dp, 1, &out);
    }
}

void Batch::attend(int64_t layer, Pool::Session& session) {
  rows(session, 2 * config_.kv_heads * config_.head_dim, [&](int64_t r) {
    const Row& row = rows_[size_t(r)];
    kernels().kv_write(&kv_.shape, sequences_[size_t(row.part)]->page_at(layer, row.position),
                       row.position % kPageTokens, k(r), v(r));
  });
  const AttentionPlan& todo = plan(model_.layers()[size_t(layer)].window, session.lanes());
  const int64_t count = kTileTokens * (config_.heads / config_.kv_heads), dp = kv_.shape.padded_dim;
  const size_t floats = attend_scratch_floats(&kv_.shape, count) + size_t(2 * count * (dp + 2) + 6 * count) + 16 * 12;
  attention_lanes_.reserve(session.lanes(), floats * sizeof(float));
  const auto one = [&](int64_t i, int lane) {
    attend_item(todo.items[size_t(i)], todo, layer, static_cast<char*>(attention_lanes_.at(lane)));
  };
  if (todo.work < kSerialAttention)
    for (int64_t i = 0; i < int64_t(todo.items.size()); ++i) one(i, 0);
  else
    session.run(int64_t(todo.items.size()), one);
  for (const Item& item : todo.merges) merge_item(item);
}

}  // namespace headway
