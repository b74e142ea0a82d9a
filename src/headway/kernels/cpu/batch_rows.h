// Batch::rows: the same for every row, by one thread or all.
#pragma once
#include <algorithm>

#include "batch.h"

namespace headway {

constexpr int64_t kSerialElements = 8192;  // row work below this stays with the caller

template <class F> void Batch::rows(Pool::Session& session, int64_t cost, F&& f) {
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

}  // namespace headway
