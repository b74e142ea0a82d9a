// Products of one activation matrix with several weights, run by the pool: forms built once, tiles shared out.
#pragma once
#include <vector>

#include "arena.h"
#include "pool.h"
#include "weight.h"

namespace headway {

struct Product {
  const Weight* weight;
  float* y;
  int64_t ldy;
};

// Buffers that outlive a call: one scratch block per lane.
class LaneScratch {
 public:
  // Serial: make at least `bytes` for each of `lanes`.
  void reserve(int lanes, size_t bytes);
  void* at(int lane) const { return blocks_[size_t(lane)].data(); }

 private:
  std::vector<Buffer> blocks_;
};

// y = x W^T for each product, x the rows of `acts`. `exact`: float32 activations against the exact weights.
void multiply(Pool::Session& session, Acts& acts, const Product* products, int count, bool exact,
              LaneScratch& scratch);

}  // namespace headway
