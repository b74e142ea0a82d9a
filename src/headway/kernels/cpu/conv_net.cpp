#include "conv_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "w8a16_weight.h"

namespace headway {
namespace {

constexpr int64_t kBlockRows = 12;  // a multiple of the rows of a dense block at every level
constexpr int64_t kTaskPixels = 16 * kBlockRows;
constexpr size_t kImageBytes = 128 << 10;  // of a tile's image between two convolutions: within the second level

int64_t out_size(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }
// Padding before the image: the odd pixel comes after it.
int64_t pad_before(int64_t size, int64_t kernel, int64_t stride) {
  return std::max<int64_t>(0, (out_size(size, stride) - 1) * stride + kernel - size) / 2;
}

}  // namespace

ConvNet::ConvNet(int64_t channels, std::vector<ConvStep> steps, WeightPtr classifier, Vector bias)
    : channels_(channels),
      steps_(std::move(steps)),
      classifier_(with_wide_activations(std::move(classifier))),
      bias_(std::move(bias)) {
  for (ConvStep& step : steps_) step.weight = with_wide_activations(std::move(step.weight));
}

// A buffer that neither holds `kept` nor the step's input, which is the one used last.
ConvNet::Image ConvNet::room(int64_t height, int64_t width, int64_t channels, const Image& kept) {
  std::rotate(std::begin(images_), std::begin(images_) + 1, std::end(images_));
  if (kept.data && images_[0].data() == kept.data) std::swap(images_[0], images_[1]);
  Image made{nullptr, height, width, channels};
  images_[0].grow(size_t(made.pixels() * made.ld()) * sizeof(float), Owner::scratch);
  made.data = images_[0].as<float>();
  return made;
}

void ConvNet::run(const float* images, int64_t count, int64_t height, int64_t width, float* logits, int threads) {
  const std::lock_guard lock(busy_);
  Pool::Session session(threads);
  const Kernels& kernel = kernels();
  const int64_t last = steps_.back().channels, ld = round_up(last, kBlock);
  pooled_.grow(size_t(count * ld) * sizeof(float), Owner::scratch);
  std::memset(pooled_.data(), 0, size_t(count * ld) * sizeof(float));
  for (int64_t i = 0; i < count; ++i, images += channels_ * height * width) {
    Image x{nullptr, height, width, channels_}, kept{nullptr, 0, 0, 0};
    for (size_t at = 0; at < steps_.size(); ++at) {
      const ConvStep& step = steps_[at];
      if (step.begins) kept = x;
      const bool filters = at + 1 < steps_.size() && steps_[at + 1].kind == ConvStep::Kind::depthwise;
      const ConvStep& last = steps_[filters ? at + 1 : at];
      const int64_t h = out_size(x.height, step.stride), w = out_size(x.width, step.stride);
      const Image y = filters ? room(out_size(h, last.stride), out_size(w, last.stride), last.channels, kept)
                              : room(h, w, step.channels, kept);
      if (filters) filtered(step, last, x, y, images, session);
      else product(step, x, y, step.adds ? kept.data : nullptr, session);
      if (step.adds) kept.data = nullptr;
      at += filters;
      x = y;
    }
    float* mean = pooled_.as<float>() + i * ld;
    for (int64_t r = 0; r < x.pixels(); ++r) kernel.add(mean, x.data + r * x.ld(), last);
    kernel.scale(mean, 1.0f / float(x.pixels()), last);
  }
  pooled_acts_.reset(pooled_.as<float>(), ld, count, ld);
  const Product product{classifier_.get(), logits, classes()};
  multiply(session, pooled_acts_, &product, 1, false, lanes_);
  for (int64_t i = 0; i < count; ++i) kernel.add(logits + i * classes(), bias_.data(), classes());
}

void ConvNet::lane_acts(int lanes) {
  while (int64_t(lane_acts_.size()) < lanes) lane_acts_.push_back(std::make_unique<LaneActs>());
  for (const auto& lane : lane_acts_) lane->at = -1;
}

const Acts& ConvNet::LaneActs::take(int64_t part, const Weight& weight, const float* x, int64_t ld, int64_t rows) {
  if (part == at) return acts;
  at = part;
  acts.reset(x, ld, rows, ld);
  if (const FormSpec* form = weight.form(rows)) acts.ensure(*form);
  return acts;
}

void ConvNet::product(const ConvStep& step, const Image& x, const Image& y, const float* residual,
                      Pool::Session& session) {
  const Weight& weight = *step.weight;
  const int64_t cols = weight.padded_in(), n = y.pixels();
  // As even as whole dense blocks allow: a task of a few rows would be the slowest.
  const int64_t most = (n + kTaskPixels - 1) / kTaskPixels;
  const int64_t rows = std::min(n, round_up((n + most - 1) / most, kBlockRows)), chunks = (n + rows - 1) / rows;
  const int64_t rest = n - (chunks - 1) * rows;  // of the last task
  const int lanes = session.lanes();
  // Few pixels: the tiles are shared out as well, in pairs.
  const int64_t shares = lanes < 2 ? 1 : std::min((weight.tiles() + 1) / 2, std::max<int64_t>(1, 4 * lanes / chunks));
  const int64_t tiles = round_up((weight.tiles() + shares - 1) / shares, 2);
  lane_acts(lanes);
  for (int lane = 0; lane < lanes; ++lane)
    for (const int64_t count : {rows, rest}) {
      lane_acts_[size_t(lane)]->acts.reset(x.data, cols, count, cols);
      if (const FormSpec* form = weight.form(count)) lane_acts_[size_t(lane)]->acts.reserve(*form);
    }
  lanes_.reserve(lanes, std::max<size_t>({64, weight.scratch_bytes(rows), weight.scratch_bytes(rest)}));
  session.run(chunks * shares, [&](int64_t task, int lane) {
    const int64_t first = task / shares * rows, count = std::min(rows, n - first);
    const int64_t begin = task % shares * tiles, end = std::min(weight.tiles(), begin + tiles);
    if (begin >= end) return;
    const Acts& acts = lane_acts_[size_t(lane)]->take(task / shares, weight, x.data + first * cols, cols, count);
    const Finish finish{step.scale.data(), step.shift.data(), residual ? residual + first * y.ld() : nullptr, y.ld(),
                        step.low(), step.high(), 0, 0};
    weight.matmul_finish(acts, y.data + first * y.ld(), y.ld(), begin, end, lanes_.at(lane), finish);
    if (end == weight.tiles()) pad(y, first, count);
  });
}

void ConvNet::pad(const Image& y, int64_t first, int64_t count) {
  const int64_t whole = round_up(y.channels, kTile);
  for (int64_t p = first; whole < y.ld() && p < first + count; ++p)
    std::fill(y.data + p * y.ld() + whole, y.data + (p + 1) * y.ld(), 0.0f);
}

void ConvNet::filtered(const ConvStep& step, const ConvStep& filter, const Image& x, const Image& y,
                       const float* planes, Pool::Session& session) {
  const bool stem = step.kind == ConvStep::Kind::stem;
  const int64_t height = out_size(x.height, step.stride), width = out_size(x.width, step.stride);
  const int64_t k = filter.kernel, stride = filter.stride;
  const int64_t top = pad_before(height, k, stride), left = pad_before(width, k, stride);
  const int64_t line = (y.width - 1) * stride + k;  // pixels of a row with its padding
  const int64_t most = std::max<int64_t>(1, (int64_t(kImageBytes) / (line * kTile * 4) - k) / stride + 1);
  const int64_t rows = (y.height + (y.height + most - 1) / most - 1) / ((y.height + most - 1) / most);
  const int64_t bands = (y.height + rows - 1) / rows;
  const int64_t tiles = round_up(step.channels, kTile) / kTile;
  const int lanes = session.lanes();
  const int64_t shares = lanes < 2 ? 1 : std::min(tiles, std::max<int64_t>(1, 4 * lanes / bands));
  const int64_t share = (tiles + shares - 1) / shares;

  struct Band {
    int64_t out, rows;      // of the result
    int64_t in, in_rows;    // of the image between, from `in`, which may be negative
    int64_t begin, end;     // of these, the ones inside it
  };
  const auto band_of = [&](int64_t at) {
    Band b{at * rows, std::min(rows, y.height - at * rows), at * rows * stride - top, 0, 0, 0};
    b.in_rows = (b.rows - 1) * stride + k;
    b.begin = std::max<int64_t>(0, b.in);
    b.end = std::min(height, b.in + b.in_rows);
    return b;
  };
  const int64_t image = ((rows - 1) * stride + k) * line * kTile;
  // The stem's own input, padded: planes of rows.
  const int64_t wide = (width - 1) * step.stride + step.kernel;
  const int64_t plane = stem ? (((rows - 1) * stride + k - 1) * step.stride + step.kernel) * wide : 0;
  between_.reserve(lanes, size_t(image + channels_ * plane) * sizeof(float));
  size_t scratch = 64;
  if (!stem) {
    lane_acts(lanes);
    for (int64_t at = 0; at < bands; ++at) {
      const Band b = band_of(at);
      const int64_t count = (b.end - b.begin) * width;
      scratch = std::max(scratch, step.weight->scratch_bytes(count));
      const FormSpec* form = step.weight->form(count);
      for (int lane = 0; form && lane < lanes; ++lane) {
        lane_acts_[size_t(lane)]->acts.reset(x.data, x.ld(), count, x.ld());
        lane_acts_[size_t(lane)]->acts.reserve(*form);
      }
    }
  }
  lanes_.reserve(lanes, scratch);
  session.run(bands * shares, [&](int64_t task, int lane) {
    const Band b = band_of(task / shares);
    const int64_t first = task % shares * share, end = std::min(tiles, first + share);
    if (first >= end) return;
    auto* between = static_cast<float*>(between_.at(lane));
    std::fill(between, between + b.in_rows * line * kTile, 0.0f);
    float* inside = between + ((b.begin - b.in) * line + left) * kTile;
    const Acts* acts = nullptr;
    float* padded = between + image;
    if (stem) pad_planes(step, b.begin, b.end - b.begin, planes, x, padded, plane, wide);
    else {
      const int64_t count = (b.end - b.begin) * width;
      acts = &lane_acts_[size_t(lane)]->take(task / shares, *step.weight, x.data + b.begin * width * x.ld(), x.ld(),
                                             count);
    }
    for (int64_t tile = first; tile < end; ++tile) {
      const int64_t at = tile * kTile;
      if (stem) {
        const StemArgs args{padded, channels_, plane, wide, step.taps.data() + at, y.ld(), step.shift.data() + at,
                            step.kernel, step.stride, step.low(), step.high(), inside, b.end - b.begin, width,
                            line * kTile};
        kernels().stem(&args);
      } else {
        const Finish finish{step.scale.data(), step.shift.data(), nullptr, 0, step.low(), step.high(), width,
                            (line - width) * kTile};
        step.weight->matmul_finish(*acts, inside - at, kTile, tile, tile + 1, lanes_.at(lane), finish);
      }
      const DepthwiseArgs args{between, line, filter.taps.data() + at, y.ld(), filter.shift.data() + at, k, stride,
                               filter.low(), filter.high(), y.data + b.out * y.width * y.ld() + at, b.rows, y.width,
                               y.ld()};
      kernels().depthwise(&args);
    }
    if (end == tiles) pad(y, b.out * y.width, b.rows * y.width);
  });
}

// What `rows` rows of the stem's output from `first` on read of the image, zeros where that is outside.
void ConvNet::pad_planes(const ConvStep& step, int64_t first, int64_t rows, const float* planes, const Image& x,
                         float* to, int64_t plane, int64_t wide) {
  const int64_t top = first * step.stride - pad_before(x.height, step.kernel, step.stride);
  const int64_t left = pad_before(x.width, step.kernel, step.stride), n = (rows - 1) * step.stride + step.kernel;
  for (int64_t c = 0; c < channels_; ++c)
    for (int64_t r = 0; r < n; ++r) {
      float* line = to + c * plane + r * wide;
      std::fill(line, line + wide, 0.0f);
      if (top + r >= 0 && top + r < x.height)
        std::copy_n(planes + (c * x.height + top + r) * x.width, std::min(x.width, wide - left), line + left);
    }
}

}  // namespace headway
