#include "batch.h"

#include <algorithm>

#include "batch_rows.h"
#include "kernels.h"

namespace headway {
namespace {

float* at(const Buffer& buffer, int64_t row, int64_t ld) { return buffer.as<float>() + row * ld; }

}  // namespace

Batch::Batch(const Model& model) : model_(model), config_(model.config()), kv_(*model.kv_layout()) {
  ld_model_ = round_up(config_.d_model, kBlock);
  ld_q_ = round_up(config_.heads * config_.head_dim, kBlock);
  ld_kv_ = round_up(config_.kv_heads * config_.head_dim, kBlock);
  ld_ffn_ = round_up(config_.ffn, kBlock);
}

void Batch::clear() {
  rows_.clear();
  sequences_.clear();
  plans_.clear();
}

void Batch::append(Sequence* sequence, int64_t position, const int32_t* tokens, int64_t n) {
  const auto part = int64_t(sequences_.size());
  sequences_.push_back(sequence);
  for (int64_t i = 0; i < n; ++i) rows_.push_back({part, position + i, tokens[i]});
}

bool Batch::plain() const { return std::find(sequences_.begin(), sequences_.end(), nullptr) == sequences_.end(); }

void Batch::advance() {
  for (const Row& row : rows_)
    if (sequences_[size_t(row.part)]) sequences_[size_t(row.part)]->advance(1);
}

void Batch::embed(Pool::Session& session) {
  const auto n = size_t(rows_.size());
  const auto room = [n](Buffer& buffer, int64_t ld) { buffer.grow(n * size_t(ld) * sizeof(float), Owner::scratch); };
  for (Buffer* buffer : {&x_, &h_, &a_}) room(*buffer, ld_model_);
  for (Buffer* buffer : {&q_, &attended_}) room(*buffer, ld_q_);
  for (Buffer* buffer : {&k_, &v_}) room(*buffer, ld_kv_);
  for (Buffer* buffer : {&gate_, &up_}) room(*buffer, ld_ffn_);
  rows(session, config_.d_model, [&](int64_t r) {
    model_.embedding().gather(&rows_[size_t(r)].token, 1, x(r), ld_model_);
    if (config_.embedding_scale != 1.0f)
      kernels().scale(x(r), config_.embedding_scale, config_.d_model);
  });
}

void Batch::project(int64_t layer, Pool::Session& session) {
  const LayerWeights& w = model_.layers()[size_t(layer)];
  const Kernels& k = kernels();
  const auto n = int64_t(rows_.size());
  rows(session, config_.d_model, [&](int64_t r) {
    k.rms_norm(x(r), w.attention_norm.data(), config_.norm_eps, config_.d_model, h(r));
  });
  h_acts_.reset(h_.as<float>(), ld_model_, n, ld_model_);
  const Product products[] = {{w.q.get(), q_.as<float>(), ld_q_},
                              {w.k.get(), k_.as<float>(), ld_kv_},
                              {w.v.get(), v_.as<float>(), ld_kv_}};
  multiply(session, h_acts_, products, 3, config_.exact, lanes_);
  const int64_t d = config_.head_dim;
  const RopeTable& rope = ropes_[size_t(w.rope)];
  rows(session, (config_.heads + 2 * config_.kv_heads) * d, [&](int64_t r) {
    float *query = q(r), *key = this->k(r), *value = v(r);
    if (!w.q_bias.empty()) k.add(query, w.q_bias.data(), config_.heads * d);
    if (!w.k_bias.empty()) k.add(key, w.k_bias.data(), config_.kv_heads * d);
    if (!w.v_bias.empty()) k.add(value, w.v_bias.data(), config_.kv_heads * d);
    if (!w.q_norm.empty())
      for (int64_t i = 0; i < config_.heads; ++i)
        k.rms_norm(query + i * d, w.q_norm.data(), config_.norm_eps, d, query + i * d);
    if (!w.k_norm.empty())
      for (int64_t i = 0; i < config_.kv_heads; ++i)
        k.rms_norm(key + i * d, w.k_norm.data(), config_.norm_eps, d, key + i * d);
    const Row& row = rows_[size_t(r)];
    k.rope(query, config_.heads, d, rope.cosine(row.position), rope.sine(row.position));
    k.rope(key, config_.kv_heads, d, rope.cosine(row.position), rope.sine(row.position));
  });
}

void Batch::mix(int64_t layer, Pool::Session& session) {
  const LayerWeights& w = model_.layers()[size_t(layer)];
  const Kernels& k = kernels();
  const auto n = int64_t(rows_.size());
  const int64_t d = config_.d_model;
  const auto add = [&](int64_t r, const Vector& norm) {
    float* a = at(a_, r, ld_model_);
    if (!norm.empty()) k.rms_norm(a, norm.data(), config_.norm_eps, d, a);
    k.add(x(r), a, d);
  };
  attended_acts_.reset(attended_.as<float>(), ld_q_, n, ld_q_);
  const Product output{w.o.get(), a_.as<float>(), ld_model_};
  multiply(session, attended_acts_, &output, 1, config_.exact, lanes_);
  rows(session, 2 * d, [&](int64_t r) {
    add(r, w.post_attention_norm);
    k.rms_norm(x(r), w.mlp_norm.data(), config_.norm_eps, d, h(r));
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

void Batch::head(const std::vector<int64_t>& rows, float* logits, Pool::Session& session) {
  const auto n = int64_t(rows.size());
  if (!n) return;
  picked_.grow(size_t(n * ld_model_) * sizeof(float), Owner::scratch);
  for (int64_t i = 0; i < n; ++i)
    kernels().rms_norm(x(rows[size_t(i)]), model_.final_norm().data(), config_.norm_eps, config_.d_model,
                       at(picked_, i, ld_model_));
  picked_acts_.reset(picked_.as<float>(), ld_model_, n, ld_model_);
  const Product product{&model_.head(), logits, config_.vocab};
  multiply(session, picked_acts_, &product, 1, config_.exact, lanes_);
  if (config_.final_softcap > 0)
    for (int64_t i = 0; i < n; ++i) kernels().softcap(logits + i * config_.vocab, config_.final_softcap, config_.vocab);
}

}  // namespace headway
