#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "batch.h"
#include "feed.h"
#include "kernels.h"
#include "pool.h"

namespace headway {

void RopeTable::reach(int64_t positions) {
  if (positions <= positions_) return;
  const auto half = int64_t(frequencies_.size());
  const int64_t room = std::max<int64_t>(256, round_up(positions + positions / 2, 64));
  stride_ = round_up(half, 16);
  auto table = std::make_shared<Buffer>(size_t(room * 2 * stride_) * sizeof(float), Owner::scratch);
  for (int64_t p = 0; p < room; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const float angle = float(p) * frequencies_[size_t(j)];  // rounded as the readable network rounds it
      table->as<float>()[p * 2 * stride_ + j] = float(std::cos(double(angle))) * factor_;
      table->as<float>()[(p * 2 + 1) * stride_ + j] = float(std::sin(double(angle))) * factor_;
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
  kv_ = std::make_shared<KVLayout>(config_.kv_heads, config_.head_dim, config_.kv, std::move(windows));
  batch_ = std::make_unique<Batch>(*this);
}

Model::~Model() = default;

std::vector<RopeTable> Model::ropes(int64_t positions) const {
  const std::lock_guard lock(growing_);
  for (RopeTable& rope : ropes_) rope.reach(positions);
  return ropes_;
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

void Model::step(const std::vector<Part>& parts, float* logits, int threads) {
  const std::lock_guard lock(busy_);
  Pool::Session session(threads);
  feed(parts, logits, *batch_, session, [] {});
}

}  // namespace headway
