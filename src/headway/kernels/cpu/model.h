// A whole decoder-only language model, one crossing a step: the network that llm/families/base.py spells out.
//
// A step takes a ragged batch (some tokens of each of several sequences) through
//   embed, then per layer  project (norm, q/k/v, rope, KV append)  attend  mix (output, norm, MLP),  then head
// Each part is a function of its own, so that a KV system can replace `attend` alone. All sums run in an order that
// depends on neither the number of threads nor on what else is in the batch: a sequence gives the same bits alone,
// batched, or fed in chunks of any size.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kv.h"
#include "linear.h"
#include "pool.h"
#include "weight.h"

namespace headway {

using WeightPtr = std::shared_ptr<const Weight>;
using Vector = std::vector<float>;

// Cosines and sines of position * frequency, made as far as positions were seen.
class RopeTable {
 public:
  RopeTable(Vector frequencies, float factor) : frequencies_(std::move(frequencies)), factor_(factor) {}
  void reach(int64_t positions);
  const float* cosine(int64_t position) const { return table_.as<float>() + position * 2 * stride_; }
  const float* sine(int64_t position) const { return cosine(position) + stride_; }
  bool same(const Vector& frequencies, float factor) const { return frequencies == frequencies_ && factor == factor_; }

 private:
  Vector frequencies_;
  float factor_;
  int64_t stride_ = 0, positions_ = 0;
  Buffer table_;
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
  bool half_kv = true;
  bool exact = false;  // float32 activations everywhere
};

struct Part {  // of a batch
  Sequence* sequence;
  const int32_t* tokens;
  int64_t count;
};

class Model {
 public:
  Model(ModelConfig config, std::vector<LayerWeights> layers, std::vector<RopeTable> ropes, Vector final_norm,
        WeightPtr embedding, WeightPtr head);

  const ModelConfig& config() const { return config_; }
  std::shared_ptr<const KVLayout> kv_layout() const { return kv_; }
  std::shared_ptr<Sequence> sequence() const { return std::make_shared<Sequence>(kv_); }
  size_t weight_bytes() const;  // read by a decoded token

  // Read every weight plainly, matrix by matrix as a step does; returns the bytes read.
  size_t read(int threads) const;

  // Feed every part; logits rows, vocab floats each, in order: of each part's last token, or of every token.
  // If it throws (std::bad_alloc) no sequence has changed.
  void step(const std::vector<Part>& parts, bool every, float* logits, int threads);

 private:
  struct Row {
    int64_t part, position;
    int32_t token;
  };
  struct Item {  // attention of some tokens' rows of one KV head
    int64_t part, kv_head, row, tokens;
    int64_t span, spans;   // one span to a slot of `partials_`, or (span < 0) all of them
    int64_t slot;
  };
  struct AttentionPlan {
    int64_t window = -1;
    std::vector<Item> items, merges;
    std::vector<int32_t> lo, hi;  // per batch row
    double work = 0;
  };

  void begin(const std::vector<Part>& parts, Pool::Session& session);
  void chunk(Pool::Session& session);
  void embed(Pool::Session& session);
  void project(int64_t layer, Pool::Session& session);
  void attend(int64_t layer, Pool::Session& session);
  void mix(int64_t layer, Pool::Session& session);
  void head(const std::vector<int64_t>& rows, float* logits, Pool::Session& session);

  const AttentionPlan& plan(int64_t window, int lanes);
  void attend_item(const Item& item, const AttentionPlan& plan, int64_t layer, char* scratch);
  void merge_item(const Item& item);
  template <class F> void each_weight(F&& f) const;
  template <class F> void rows(Pool::Session& session, int64_t cost, F&& f);

  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  std::vector<RopeTable> ropes_;
  Vector final_norm_;
  WeightPtr embedding_, head_;
  std::shared_ptr<const KVLayout> kv_;

  std::mutex busy_;
  std::vector<Row> rows_;
  std::vector<Sequence*> sequences_;
  std::vector<AttentionPlan> plans_;
  Buffer x_, h_, q_, k_, v_, attended_, a_, gate_, up_, picked_, partials_;
  int64_t ld_model_ = 0, ld_q_ = 0, ld_kv_ = 0, ld_ffn_ = 0;
  Acts h_acts_, attended_acts_, gate_acts_, picked_acts_;
  LaneScratch lanes_, attention_lanes_;
};

}  // namespace headway
