#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace headway {
namespace {

constexpr int64_t kChunkRows = 512;         // batch rows that go through the layers together
constexpr int64_t kTileTokens = 16;         // query tokens of one attention item
constexpr int64_t kSplitTokens = 8;         // parts shorter than this have their keys split into spans
constexpr int64_t kSerialElements = 8192;   // row work below this stays with the caller
constexpr double kSerialAttention = 60'000; // multiply-adds of attention that stay with the caller

float* at(const Buffer& buffer, int64_t row, int64_t ld) { return buffer.as<float>() + row * ld; }

}  // namespace

void RopeTable::reach(int64_t positions) {
  if (positions <= positions_) return;
  const auto half = int64_t(frequencies_.size());
  const int64_t room = std::max<int64_t>(256, round_up(positions + positions / 2, 64));
  stride_ = round_up(half, 16);
  Buffer table(size_t(room * 2 * stride_) * sizeof(float), Owner::scratch);
  for (int64_t p = 0; p < room; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const float angle = float(p) * frequencies_[size_t(j)];  // rounded as the readable network rounds it
      table.as<float>()[p * 2 * stride_ + j] = float(std::cos(double(angle))) * factor_;
      table.as<float>()[(p * 2 + 1) * stride_ + j] = float(std::sin(double(angle))) * factor_;
    }
  table_ = std::move(table);
  positions_ = room;
}

Model::Model(ModelConfig config, std::vector<LayerWeights> layers, std::vector<RopeTable> ropes, Vector final_norm,
             WeightPtr embedding, WeightPtr head)
    : config_(config),
      layers_(std::move(layers)),
      ropes_(std::move(ropes)),
      final_norm_(std::move(final_norm)),
      embedding_(std::move(embedding)),
      head_(std::move(head)) {
  std::vector<int64_t> windows;
  for (const LayerWeights& layer : layers_) windows.push_back(layer.window);
  kv_ = std::make_shared<KVLayout>(config_.kv_heads, config_.head_dim, config_.half_kv, std::move(windows));
  ld_model_ = round_up(config_.d_model, kBlock);
  ld_q_ = round_up(config_.heads * config_.head_dim, kBlock);
  ld_kv_ = round_up(config_.kv_heads * config_.head_dim, kBlock);
  ld_ffn_ = round_up(config_.ffn, kBlock);
}

template <class F> void Model::each_weight(F&& f) const {
  for (const LayerWeights& l : layers_)
    for (const WeightPtr& w : {l.q, l.k, l.v, l.o, l.gate, l.up, l.down}) f(*w);
  f(*head_);
}

size_t Model::weight_bytes() const {
  size_t total = 0;
  each_weight([&](const Weight& w) { total += w.bytes(); });
  return total;
}

size_t Model::read(int threads) const {
  constexpr size_t piece = 32 << 10;
  Pool::Session session(threads);
  size_t total = 0;
  std::atomic<uint64_t> sum{0};
  each_weight([&](const Weight& w) {
    const auto* data = static_cast<const char*>(w.data());
    if (!data) return;
    session.run(int64_t((w.bytes() + piece - 1) / piece), [&](int64_t task, int) {
      const size_t at = size_t(task) * piece;
      sum.fetch_add(kernels().read(data + at, std::min(piece, w.bytes() - at)), std::memory_order_relaxed);
    });
    total += w.bytes();
  });
  return total;
}

template <class F> void Model::rows(Pool::Session& session, int64_t cost, F&& f) {
  const auto n = int64_t(rows_.size());
  if (session.lanes() < 2 || n < 2 || n * cost < kSerialElements) {
    for (int64_t r = 0; r < n; ++r) f(r);
    return;
  }
  const int64_t step = std::max<int64_t>(1, n / (8 * session.lanes()));
  session.run((n + step - 1) / step, [&](int64_t task, int) {
    for (int64_t r = task * step; r < std::min(n, (task + 1) * step); ++r) f(r);
  });
}

void Model::step(const std::vector<Part>& parts, bool every, float* logits, int threads) {
  const std::lock_guard lock(busy_);
  std::vector<int64_t> before;
  for (const Part& part : parts) before.push_back(part.sequence->length());
  try {
    for (const Part& part : parts) part.sequence->reserve(part.count);
    int64_t longest = 0;
    for (const Part& part : parts) longest = std::max(longest, part.sequence->length() + part.count);
    for (RopeTable& rope : ropes_) rope.reach(longest);
    Pool::Session session(threads);
    size_t p = 0;
    int64_t done = 0;  // tokens of part p already fed
    std::vector<int64_t> out;
    while (p < parts.size()) {
      rows_.clear();
      sequences_.clear();
      out.clear();
      while (p < parts.size() && int64_t(rows_.size()) < kChunkRows) {
        const Part& part = parts[p];
        const int64_t n = std::min(part.count - done, kChunkRows - int64_t(rows_.size()));
        const auto index = int64_t(sequences_.size());
        sequences_.push_back(part.sequence);
        for (int64_t i = 0; i < n; ++i) {
          if (every || done + i == part.count - 1) out.push_back(int64_t(rows_.size()));
          rows_.push_back({index, part.sequence->length() + i, part.tokens[done + i]});
        }
        done += n;
        if (done == part.count) {
          done = 0;
          ++p;
        }
      }
      chunk(session);
      head(out, logits, session);
      logits += int64_t(out.size()) * config_.vocab;
      for (const Row& row : rows_) sequences_[size_t(row.part)]->advance(1);
    }
  } catch (...) {
    for (size_t i = 0; i < parts.size(); ++i) parts[i].sequence->truncate(before[i]);
    throw;
  }
}

void Model::chunk(Pool::Session& session) {
  const auto n = size_t(rows_.size());
  const auto room = [n](Buffer& buffer, int64_t ld) { buffer.grow(n * size_t(ld) * sizeof(float), Owner::scratch); };
  for (Buffer* buffer : {&x_, &h_, &a_}) room(*buffer, ld_model_);
  for (Buffer* buffer : {&q_, &attended_}) room(*buffer, ld_q_);
  for (Buffer* buffer : {&k_, &v_}) room(*buffer, ld_kv_);
  for (Buffer* buffer : {&gate_, &up_}) room(*buffer, ld_ffn_);
  plans_.clear();
  embed(session);
  for (int64_t layer = 0; layer < int64_t(layers_.size()); ++layer) {
    project(layer, session);
    attend(layer, session);
    mix(layer, session);
  }
}

void Model::embed(Pool::Session& session) {
  rows(session, config_.d_model, [&](int64_t r) {
    embedding_->gather(&rows_[size_t(r)].token, 1, at(x_, r, ld_model_), ld_model_);
    if (config_.embedding_scale != 1.0f)
      kernels().scale(at(x_, r, ld_model_), config_.embedding_scale, config_.d_model);
  });
}

void Model::project(int64_t layer, Pool::Session& session) {
  const LayerWeights& w = layers_[size_t(layer)];
  const Kernels& k = kernels();
  const auto n = int64_t(rows_.size());
  rows(session, config_.d_model, [&](int64_t r) {
    k.rms_norm(at(x_, r, ld_model_), w.attention_norm.data(), config_.norm_eps, config_.d_model, at(h_, r, ld_model_));
  });
  h_acts_.reset(h_.as<float>(), ld_model_, n, ld_model_);
  const Product products[] = {{w.q.get(), q_.as<float>(), ld_q_},
                              {w.k.get(), k_.as<float>(), ld_kv_},
                              {w.v.get(), v_.as<float>(), ld_kv_}};
  multiply(session, h_acts_, products, 3, config_.exact, lanes_);
  const int64_t d = config_.head_dim;
  const RopeTable& rope = ropes_[size_t(w.rope)];
  rows(session, (config_.heads + 2 * config_.kv_heads) * d, [&](int64_t r) {
    float *q = at(q_, r, ld_q_), *key = at(k_, r, ld_kv_), *value = at(v_, r, ld_kv_);
    if (!w.q_bias.empty()) k.add(q, w.q_bias.data(), config_.heads * d);
    if (!w.k_bias.empty()) k.add(key, w.k_bias.data(), config_.kv_heads * d);
    if (!w.v_bias.empty()) k.add(value, w.v_bias.data(), config_.kv_heads * d);
    if (!w.q_norm.empty())
      for (int64_t i = 0; i < config_.heads; ++i) k.rms_norm(q + i * d, w.q_norm.data(), config_.norm_eps, d, q + i * d);
    if (!w.k_norm.empty())
      for (int64_t i = 0; i < config_.kv_heads; ++i)
        k.rms_norm(key + i * d, w.k_norm.data(), config_.norm_eps, d, key + i * d);
    const Row& row = rows_[size_t(r)];
    k.rope(q, config_.heads, d, rope.cosine(row.position), rope.sine(row.position));
    k.rope(key, config_.kv_heads, d, rope.cosine(row.position), rope.sine(row.position));
    k.kv_write(&kv_->shape, sequences_[size_t(row.part)]->page_at(layer, row.position), row.position % kPageTokens, key,
               value);
  });
}

// Which rows attend together. Rows of one part are consecutive, and their positions too.
const Model::AttentionPlan& Model::plan(int64_t window, int lanes) {
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
  partials_.grow(size_t(slots) * size_t(2 + kv_->shape.padded_dim) * sizeof(float) + 64, Owner::scratch);
  return plan;
}

void Model::attend_item(const Item& item, const AttentionPlan& plan, int64_t layer, char* scratch) {
  const Kernels& k = kernels();
  const int64_t shared = config_.heads / config_.kv_heads, count = item.tokens * shared;
  const int64_t dp = kv_->shape.padded_dim, d = config_.head_dim;
  auto* floats = reinterpret_cast<float*>(scratch);
  const auto take = [&floats](int64_t n) {
    float* p = floats;
    floats += round_up(n, 16);
    return p;
  };
  AttendArgs args{};
  args.scratch = take(int64_t(attend_scratch_floats(&kv_->shape)));
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
      q[r] = at(q_, item.row + t, ld_q_) + offset;
      out[r] = at(attended_, item.row + t, ld_q_) + offset;
      lo[r] = plan.lo[size_t(item.row + t)];
      hi[r] = plan.hi[size_t(item.row + t)];
      least = std::min(least, lo[r]);
      most = std::max(most, hi[r]);
    }
  args.shape = kv_->shape;
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
  k.attend_finish(l, o, count, d, dp, out);
}

void Model::merge_item(const Item& item) {
  const Kernels& k = kernels();
  const int64_t shared = config_.heads / config_.kv_heads, count = item.tokens * shared;
  const int64_t dp = kv_->shape.padded_dim, d = config_.head_dim;
  float* into = partials_.as<float>() + item.slot * (2 + dp);
  for (int64_t i = 1; i < item.spans; ++i) {
    const float* from = into + i * count * (2 + dp);
    k.attend_merge(into, into + count, into + 2 * count, from, from + count, from + 2 * count, count, dp);
  }
  for (int64_t t = 0; t < item.tokens; ++t)
    for (int64_t g = 0; g < shared; ++g) {
      float* out = at(attended_, item.row + t, ld_q_) + (item.kv_head * shared + g) * d;
      const int64_t r = t * shared + g;
      k.attend_finish(into + count + r, into + 2 * count + r * dp, 1, d, dp, &out);
    }
}

void Model::attend(int64_t layer, Pool::Session& session) {
  const AttentionPlan& todo = plan(layers_[size_t(layer)].window, session.lanes());
  const int64_t count = kTileTokens * (config_.heads / config_.kv_heads), dp = kv_->shape.padded_dim;
  const size_t floats = attend_scratch_floats(&kv_->shape) + size_t(2 * count * (dp + 2) + 6 * count) + 16 * 12;
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

void Model::mix(int64_t layer, Pool::Session& session) {
  const LayerWeights& w = layers_[size_t(layer)];
  const Kernels& k = kernels();
  const auto n = int64_t(rows_.size());
  const int64_t d = config_.d_model;
  const auto add = [&](int64_t r, const Vector& norm) {
    float* a = at(a_, r, ld_model_);
    if (!norm.empty()) k.rms_norm(a, norm.data(), config_.norm_eps, d, a);
    k.add(at(x_, r, ld_model_), a, d);
  };
  attended_acts_.reset(attended_.as<float>(), ld_q_, n, ld_q_);
  const Product output{w.o.get(), a_.as<float>(), ld_model_};
  multiply(session, attended_acts_, &output, 1, config_.exact, lanes_);
  rows(session, 2 * d, [&](int64_t r) {
    add(r, w.post_attention_norm);
    k.rms_norm(at(x_, r, ld_model_), w.mlp_norm.data(), config_.norm_eps, d, at(h_, r, ld_model_));
  });
  h_acts_.reset(h_.as<float>(), ld_model_, n, ld_model_);
  const Product wide[] = {{w.gate.get(), gate_.as<float>(), ld_ffn_}, {w.up.get(), up_.as<float>(), ld_ffn_}};
  multiply(session, h_acts_, wide, 2, config_.exact, lanes_);
  rows(session, 8 * config_.ffn, [&](int64_t r) {
    k.glu(at(gate_, r, ld_ffn_), at(up_, r, ld_ffn_), config_.ffn, config_.activation);
  });
  gate_acts_.reset(gate_.as<float>(), ld_ffn_, n, ld_ffn_);
  const Product down{w.down.get(), a_.as<float>(), ld_model_};
  multiply(session, gate_acts_, &down, 1, config_.exact, lanes_);
  rows(session, d, [&](int64_t r) { add(r, w.post_mlp_norm); });
}

void Model::head(const std::vector<int64_t>& rows, float* logits, Pool::Session& session) {
  const auto n = int64_t(rows.size());
  if (!n) return;
  picked_.grow(size_t(n * ld_model_) * sizeof(float), Owner::scratch);
  for (int64_t i = 0; i < n; ++i)
    kernels().rms_norm(at(x_, rows[size_t(i)], ld_model_), final_norm_.data(), config_.norm_eps, config_.d_model,
                       at(picked_, i, ld_model_));
  picked_acts_.reset(picked_.as<float>(), ld_model_, n, ld_model_);
  const Product product{head_.get(), logits, config_.vocab};
  multiply(session, picked_acts_, &product, 1, config_.exact, lanes_);
  if (config_.final_softcap > 0)
    for (int64_t i = 0; i < n; ++i) kernels().softcap(logits + i * config_.vocab, config_.final_softcap, config_.vocab);
}

}  // namespace headway
