// The rows that go through the layers together, and the activations on their way.
//
//   embed, then per layer  project (norm, q/k/v, biases, head norms, rope)  attend (the KV slot's)  mix (output, norm,
//   MLP),  then head
//
// `attend` here is that of the plain paged store; a KV system takes q, k and v after `project`, does its own, and puts
// the result in `attended` before `mix`. All sums run in an order that depends on neither the number of threads nor on
// what else is in the batch.
#pragma once
#include <cstdint>
#include <vector>

#include "kv.h"
#include "linear.h"
#include "model.h"
#include "pool.h"

namespace headway {

class Batch {
 public:
  explicit Batch(const Model& model);

  // Filling: rows of one sequence are consecutive. `sequence` null: `attend` is somebody else's.
  void clear();
  void append(Sequence* sequence, int64_t position, const int32_t* tokens, int64_t n);
  int64_t size() const { return int64_t(rows_.size()); }

  // Before the rest: positions below this may come.
  void reach(int64_t positions) { ropes_ = model_.ropes(positions); }

  // In this order.
  void embed(Pool::Session& session);
  void project(int64_t layer, Pool::Session& session);
  void attend(int64_t layer, Pool::Session& session);
  void mix(int64_t layer, Pool::Session& session);
  // Logits of the rows listed, vocab floats each.
  void head(const std::vector<int64_t>& rows, float* logits, Pool::Session& session);
  // Count the rows as part of their sequences.
  void advance();

  float* q(int64_t row) const { return q_.as<float>() + row * ld_q_; }  // heads * head_dim, rotated
  float* k(int64_t row) const { return k_.as<float>() + row * ld_kv_; }  // kv_heads * head_dim, rotated
  float* v(int64_t row) const { return v_.as<float>() + row * ld_kv_; }
  float* attended(int64_t row) const { return attended_.as<float>() + row * ld_q_; }
  bool plain() const;  // every row has a sequence

 private:
  struct Row {
    int64_t part, position;
    int32_t token;
  };
  struct Item {  // attention of some tokens' rows of one KV head
    int64_t part, kv_head, row, tokens;
    int64_t span, spans;  // one span to a slot of `partials_`, or (span < 0) all of them
    int64_t slot;
  };
  struct AttentionPlan {
    int64_t window = -1;
    std::vector<Item> items, merges;
    std::vector<int32_t> lo, hi;  // per batch row
    double work = 0;
  };

  float* x(int64_t row) const { return x_.as<float>() + row * ld_model_; }
  float* h(int64_t row) const { return h_.as<float>() + row * ld_model_; }
  const AttentionPlan& plan(int64_t window, int lanes);
  void attend_item(const Item& item, const AttentionPlan& plan, int64_t layer, char* scratch);
  void merge_item(const Item& item);
  template <class F> void rows(Pool::Session& session, int64_t cost, F&& f);

  const Model& model_;
  const ModelConfig& config_;
  const KVLayout& kv_;
  std::vector<RopeTable> ropes_;
  std::vector<Row> rows_;
  std::vector<Sequence*> sequences_;
  std::vector<AttentionPlan> plans_;
  Buffer x_, h_, q_, k_, v_, attended_, a_, gate_, up_, picked_, partials_;
  int64_t ld_model_ = 0, ld_q_ = 0, ld_kv_ = 0, ld_ffn_ = 0;
  Acts h_acts_, attended_acts_, gate_acts_, picked_acts_;
  LaneScratch lanes_, attention_lanes_;
};

}  // namespace headway
