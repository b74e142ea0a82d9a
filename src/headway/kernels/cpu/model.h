// A whole decoder-only language model, one crossing a step: the network that llm/families/base.py spells out.
//
// A step takes a ragged batch (some tokens of each of several sequences) through its layers, at most kChunkRows rows
// at a time (batch.h). A sequence gives the same bits alone, batched, or fed in chunks of any size, for every number
// of threads.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kv.h"
#include "pool.h"
#include "weight.h"

namespace headway {

using WeightPtr = std::shared_ptr<const Weight>;
using Vector = std::vector<float>;

// Cosines and sines of position * frequency, made as far as positions were seen. A copy shares the table, and keeps it
// when the original makes a longer one.
class RopeTable {
 public:
  RopeTable(Vector frequencies, float factor) : frequencies_(std::move(frequencies)), factor_(factor) {}
  void reach(int64_t positions);
  const float* cosine(int64_t position) const { return table_->as<float>() + position * 2 * stride_; }
  const float* sine(int64_t position) const { return cosine(position) + stride_; }
  bool same(const Vector& frequencies, float factor) const { return frequencies == frequencies_ && factor == factor_; }

 private:
  Vector frequencies_;
  float factor_;
  int64_t stride_ = 0, positions_ = 0;
  std::shared_ptr<const Buffer> table_;
};

struct LayerWeights {
  WeightPtr q, k, v, o, gate, up, down;
  Vector attention_norm, mlp_norm;
  Vector q_bias, k_bias, v_bias;                // empty: none
  Vector q_norm, k_norm;                        // empty: none
  Vector post_attention_norm, post_mlp_norm;    // empty: none
  int64_t window = 0;
  int rope = 0;                                 // index into Model::ropes
};

struct ModelConfig {
  int64_t vocab = 0, d_model = 0, ffn = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float norm_eps = 0, query_scale = 0, embedding_scale = 1, attention_softcap = 0, final_softcap = 0;
  int activation = 0;  // 0 silu, 1 gelu (tanh)
  PageStore kv = kPageF16;
  bool exact = false;  // float32 activations everywhere
};

enum class Wanted : uint8_t { none = 0, last = 1, every = 2 };  // logits: of which of a part's tokens

struct Part {  // of a step
  Sequence* sequence;
  const int32_t* tokens;
  int64_t count;
  Wanted wanted;
};

constexpr int64_t kChunkRows = 512;  // batch rows that go through the layers together

class Batch;

class Model {
 public:
  Model(ModelConfig config, std::vector<LayerWeights> layers, std::vector<RopeTable> ropes, Vector final_norm,
        WeightPtr embedding, WeightPtr head);
  ~Model();

  const ModelConfig& config() const { return config_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const Vector& final_norm() const { return final_norm_; }
  const Weight& embedding() const { return *embedding_; }
  const Weight& head() const { return *head_; }
  std::shared_ptr<const KVLayout> kv_layout() const { return kv_; }
  size_t weight_bytes() const;  // read by a decoded token

  // One table for each kind of layer (LayerWeights::rope), up to that many positions.
  std::vector<RopeTable> ropes(int64_t positions) const;
  // Held by whoever steps with all threads: such steps take turns.
  std::mutex& busy() const { return busy_; }

  // Read every weight plainly, matrix by matrix as a step does; returns the bytes read.
  size_t read(int threads) const;

  // Feed every part; logits rows, vocab floats each, of the tokens wanted, in order.
  // If it throws (std::bad_alloc) no sequence has changed.
  void step(const std::vector<Part>& parts, float* logits, int threads);
  // The same with the caller's batch and threads; `before_layer` is called before each layer and the head.
  template <class F>
  void feed(const std::vector<Part>& parts, float* logits, Batch& batch, Pool::Session& session, F&& before_layer) const;

 private:
  template <class F> void each_weight(F&& f) const;

  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  mutable std::mutex growing_;  // guards the next
  mutable std::vector<RopeTable> ropes_;
  Vector final_norm_;
  WeightPtr embedding_, head_;
  std::shared_ptr<const KVLayout> kv_;
  mutable std::mutex busy_;
  std::unique_ptr<Batch> batch_;  // of `step`
};

}  // namespace headway
