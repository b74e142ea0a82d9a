#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "batch.h"
#include "kernels.h"
#include "pool.h"

namespace headway {

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
  kv_ = std::make_shared<KVLayout>(config_.kv_heads, config_.head_dim, config_.kv, std::move(windows));
  batch_ = std::make_unique<Batch>(*this);
}

Model::~Model() = default;

void Model::reach(int64_t positions) {
  for (RopeTable& rope : ropes_) rope.reach(positions);
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
  std::vector<int64_t> before;
  for (const Part& part : parts) before.push_back(part.sequence->length());
  try {
    int64_t longest = 0;
    for (const Part& part : parts) {
      part.sequence->reserve(part.count);
      longest = std::max(longest, part.sequence->length() + part.count);
    }
    reach(longest);
    Pool::Session session(threads);
    size_t p = 0;
    int64_t done = 0;  // tokens of part p already fed
    std::vector<int64_t> out;
    while (p < parts.size()) {
      batch_->clear();
      out.clear();
      while (p < parts.size() && batch_->size() < kChunkRows) {
        const Part& part = parts[p];
        const int64_t n = std::min(part.count - done, kChunkRows - batch_->size());
        for (int64_t i = done; i < done + n; ++i)
          if (part.wanted == Wanted::every || (part.wanted == Wanted::last && i == part.count - 1))
            out.push_back(batch_->size() + i - done);
        batch_->append(part.sequence, part.sequence->length(), part.tokens + done, n);
        done += n;
        if (done == part.count) {
          done = 0;
          ++p;
        }
      }
      batch_->embed(session);
      for (int64_t layer = 0; layer < int64_t(layers_.size()); ++layer) {
        batch_->project(layer, session);
        batch_->attend(layer, session);
        batch_->mix(layer, session);
      }
      if (!out.empty()) batch_->head(out, logits, session);
      logits += int64_t(out.size()) * config_.vocab;
      batch_->advance();
    }
  } catch (...) {
    for (size_t i = 0; i < parts.size(); ++i) parts[i].sequence->truncate(before[i]);
    throw;
  }
}

}  // namespace headway
