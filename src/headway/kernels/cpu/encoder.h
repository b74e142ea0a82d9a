// A bidirectional encoder of the BERT kind, whole, one crossing a batch: the network that retrieval/minilm.py spells out.
//
//   embed (token + position + type 0, norm), then per layer
//     x = norm(x + output(attention(q(x), k(x), v(x))));  x = norm(x + down(gelu(up(x))))
//   then the mean over a sequence's rows, normalised.
//
// Sequences are ragged: there are no rows of padding. They go through the layers in groups of about kEncoderRows rows,
// so that activations stay in the second-level cache while the weights stream by once a group. A sequence gives the
// same bits alone or in a batch, for every number of threads.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "linear.h"
#include "model.h"

namespace headway {

constexpr int64_t kEncoderRows = 256;

struct EncoderLinear {
  WeightPtr weight;
  Vector bias;
};
struct EncoderNorm {
  Vector weight, bias;
};
struct EncoderLayer {
  EncoderLinear q, k, v, output, up, down;
  EncoderNorm attention_norm, norm;
};
struct EncoderConfig {
  int64_t width = 0, hidden = 0, heads = 0, tokens = 0, positions = 0;
  float norm_eps = 0;
  int gelu = 0;  // 0 erf, 1 tanh
};

class Encoder {
 public:
  // tokens, positions: rows of `width` floats that outlive the encoder; type: one row.
  Encoder(EncoderConfig config, std::vector<EncoderLayer> layers, const float* tokens, const float* positions,
          Vector type, EncoderNorm norm);

  const EncoderConfig& config() const { return config_; }

  // Sequence i has the rows offsets[i] .. offsets[i + 1]; out: `count` rows of `width`, zero for an empty sequence.
  void encode(const int32_t* ids, const int32_t* places, const int32_t* offsets, int64_t count, float* out,
              int threads);

 private:
  void group(const int32_t* ids, const int32_t* places, const int32_t* offsets, int64_t count, float* out,
             Pool::Session& session);
  void attend(const EncoderLayer& layer, const int32_t* offsets, int64_t count, Pool::Session& session);
  void attend_head(const EncoderLayer& layer, int64_t first, int64_t n, int64_t head, char* scratch);
  size_t attend_bytes(int64_t n) const;
  void multiply_by(const EncoderLinear& linear, Acts& acts, float* y, int64_t ldy, Pool::Session& session);
  template <class F> void rows(Pool::Session& session, int64_t n, F&& f);

  EncoderConfig config_;
  std::vector<EncoderLayer> layers_;
  const float *tokens_, *positions_;
  Vector type_;
  EncoderNorm norm_;
  int64_t ld_width_, ld_hidden_;
  std::mutex busy_;
  Buffer x_, a_, q_, k_, v_, hidden_;
  Acts x_acts_, a_acts_, hidden_acts_;
  LaneScratch lanes_, attention_lanes_;
};

}  // namespace headway
