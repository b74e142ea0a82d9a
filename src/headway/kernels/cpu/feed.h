// Model::feed: parts through the layers, at most kChunkRows rows at a time.
#pragma once
#include <algorithm>
#include <vector>

#include "batch.h"
#include "model.h"

namespace headway {

template <class F>
void Model::feed(const std::vector<Part>& parts, float* logits, Batch& batch, Pool::Session& session,
                 F&& before_layer) const {
  std::vector<int64_t> before;
  for (const Part& part : parts) before.push_back(part.sequence->length());
  try {
    int64_t longest = 0;
    for (const Part& part : parts) {
      part.sequence->reserve(part.count);
      longest = std::max(longest, part.sequence->length() + part.count);
    }
    batch.reach(longest);
    size_t p = 0;
    int64_t done = 0;  // tokens of part p already fed
    std::vector<int64_t> out;
    while (p < parts.size()) {
      batch.clear();
      out.clear();
      while (p < parts.size() && batch.size() < kChunkRows) {
        const Part& part = parts[p];
        const int64_t n = std::min(part.count - done, kChunkRows - batch.size());
        for (int64_t i = done; i < done + n; ++i)
          if (part.wanted == Wanted::every || (part.wanted == Wanted::last && i == part.count - 1))
            out.push_back(batch.size() + i - done);
        batch.append(part.sequence, part.sequence->length(), part.tokens + done, n);
        done += n;
        if (done == part.count) {
          done = 0;
          ++p;
        }
      }
      batch.embed(session);
      for (int64_t layer = 0; layer < int64_t(layers_.size()); ++layer) {
        before_layer();
        batch.project(layer, session);
        batch.attend(layer, session);
        batch.mix(layer, session);
      }
      before_layer();
      if (!out.empty()) batch.head(out, logits, session);
      logits += int64_t(out.size()) * config_.vocab;
      batch.advance();
    }
  } catch (...) {
    for (size_t i = 0; i < parts.size(); ++i) parts[i].sequence->truncate(before[i]);
    throw;
  }
}

}  // namespace headway
