#include "linear.h"

#include <algorithm>

namespace headway {
namespace {

constexpr int kMostProducts = 8;
constexpr size_t kTaskBytes = 24 << 10;   // weight bytes of one task when x is a row or a few
constexpr int64_t kManyRows = 16;
constexpr int64_t kBuildElements = 4096;  // activations below which a form is built by the caller

int64_t tiles_per_task(const Weight& weight, int64_t rows, bool exact, int lanes) {
  const size_t tile_bytes = std::max<size_t>(1, weight.bytes() / size_t(weight.tiles()));
  size_t budget = kTaskBytes;
  if (rows > 4 || exact) budget /= 4;
  const auto by_bytes = int64_t(budget / tile_bytes);
  const int64_t by_share = weight.tiles() / (2 * lanes);  // never so large that a lane has no second task
  const int64_t pair = rows >= kManyRows && !exact ? 2 : 1;  // dense kernels take pairs of tiles
  const int64_t tiles = round_up(std::max<int64_t>(1, std::min(by_bytes, by_share)), std::max(pair, weight.tiles_together()));
  return std::min(std::max<int64_t>(1, weight.tiles() / lanes), tiles);
}

void build(Pool::Session& session, Acts& acts, const FormSpec& spec) {
  if (!acts.reserve(spec)) return;
  const int64_t units = acts.units(spec);
  if (session.lanes() < 2 || units < 2 || acts.rows() * acts.cols() < kBuildElements) {
    acts.build(spec, 0, units);
    return;
  }
  const int64_t step = std::max<int64_t>(1, units / (4 * session.lanes()));
  session.run((units + step - 1) / step, [&](int64_t task, int) {
    acts.build(spec, task * step, std::min(units, (task + 1) * step));
  });
}

}  // namespace

void LaneScratch::reserve(int lanes, size_t bytes) {
  if (blocks_.size() < size_t(lanes)) blocks_.resize(size_t(lanes));
  for (Buffer& block : blocks_) block.grow(bytes, Owner::scratch);
}

void multiply(Pool::Session& session, Acts& acts, const Product* products, int count, bool exact,
              LaneScratch& scratch) {
  int64_t first[kMostProducts + 1], step[kMostProducts];
  size_t need = 64;
  first[0] = 0;
  for (int i = 0; i < count; ++i) {
    const Weight& weight = *products[i].weight;
    if (exact) {
      need = std::max(need, std::max(Weight::exact_scratch_bytes(), weight.scratch_bytes(acts.rows())));
    } else {
      need = std::max(need, weight.scratch_bytes(acts.rows()));
      if (const FormSpec* form = weight.form(acts.rows())) build(session, acts, *form);
    }
    step[i] = tiles_per_task(weight, acts.rows(), exact, session.lanes());
    first[i + 1] = first[i] + (weight.tiles() + step[i] - 1) / step[i];
  }
  scratch.reserve(session.lanes(), need);
  session.run(first[count], [&](int64_t task, int lane) {
    int i = 0;
    while (task >= first[i + 1]) ++i;
    const Product& product = products[i];
    const int64_t begin = (task - first[i]) * step[i];
    const int64_t end = std::min(product.weight->tiles(), begin + step[i]);
    if (exact) product.weight->matmul_exact(acts, product.y, product.ldy, begin, end, scratch.at(lane));
    else product.weight->matmul(acts, product.y, product.ldy, begin, end, scratch.at(lane));
  });
}

}  // namespace headway
