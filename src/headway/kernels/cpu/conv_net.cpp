#include "conv_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace headway {
namespace {

constexpr int64_t kBlockRows = 12;  // a multiple of the rows of a dense block at every level
constexpr int64_t kTaskPixels = 16 * kBlockRows;
constexpr float kInfinite = std::numeric_limits<float>::infinity();

int64_t out_size(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }
// Padding before the image: the odd pixel comes after it.
int64_t pad_before(int64_t size, int64_t kernel, int64_t stride) {
  return std::max<int64_t>(0, (out_size(size, stride) - 1) * stride + kernel - size) / 2;
}

}  // namespace

ConvNet::ConvNet(int64_t channels, std::vector<ConvStep> steps, WeightPtr classifier, Vector bias)
    : channels_(channels), steps_(std::move(steps)), classifier_(std::move(classifier)), bias_(std::move(bias)) {}

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
    for (const ConvStep& step : steps_) {
      if (step.begins) kept = x;
      const Image y = room(out_size(x.height, step.stride), out_size(x.width, step.stride), step.channels, kept);
      if (step.kind == ConvStep::Kind::depthwise) depthwise(step, x, y, session);
      else
        product(step, x, y, step.adds ? kept.data : nullptr, step.kind == ConvStep::Kind::stem ? images : nullptr,
                height, width, session);
      if (step.adds) kept.data = nullptr;
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

// `planes`: the image as it was given, for the stem, whose taps become the columns of a row.
void ConvNet::product(const ConvStep& step, const Image& x, const Image& y, const float* residual, const float* planes,
                      int64_t height, int64_t width, Pool::Session& session) {
  const Kernels& kernel = kernels();
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
  while (int64_t(lane_acts_.size()) < lanes) lane_acts_.push_back(std::make_unique<Acts>());
  for (int lane = 0; lane < lanes; ++lane) {
    lane_acts_[size_t(lane)]->reset(x.data, cols, rows, cols);
    for (const int64_t count : {rows, rest})
      if (const FormSpec* form = weight.form(count)) lane_acts_[size_t(lane)]->reserve(*form);
  }
  lanes_.reserve(lanes, std::max<size_t>({64, weight.scratch_bytes(rows), weight.scratch_bytes(rest)}));
  if (planes) columns_.reserve(lanes, size_t(rows * cols) * sizeof(float));
  const float low = step.relu6 ? 0.0f : -kInfinite, high = step.relu6 ? 6.0f : kInfinite;
  session.run(chunks * shares, [&](int64_t task, int lane) {
    const int64_t first = task / shares * rows, count = std::min(rows, n - first);
    const int64_t begin = task % shares * tiles, end = std::min(weight.tiles(), begin + tiles);
    if (begin >= end) return;
    const float* from = x.data + first * cols;
    if (planes) {
      auto* columns = static_cast<float*>(columns_.at(lane));
      const int64_t k = step.kernel;
      const int64_t top = pad_before(height, k, step.stride), left = pad_before(width, k, step.stride);
      for (int64_t p = 0; p < count; ++p) {
        float* to = columns + p * cols;
        const int64_t oy = (first + p) / y.width * step.stride - top, ox = (first + p) % y.width * step.stride - left;
        for (int64_t c = 0; c < channels_; ++c)
          for (int64_t iy = oy; iy < oy + k; ++iy) {
            const bool inside = iy >= 0 && iy < height;
            const float* line = planes + (c * height + iy) * width;
            if (inside && ox >= 0 && ox + k <= width)
              for (int64_t ix = ox; ix < ox + k; ++ix) *to++ = line[ix];
            else
              for (int64_t ix = ox; ix < ox + k; ++ix) *to++ = inside && ix >= 0 && ix < width ? line[ix] : 0.0f;
          }
        std::fill(to, columns + (p + 1) * cols, 0.0f);
      }
      from = columns;
    }
    Acts& acts = *lane_acts_[size_t(lane)];
    acts.reset(from, cols, count, cols);
    if (const FormSpec* form = weight.form(count)) acts.ensure(*form);
    float* to = y.data + first * y.ld();
    weight.matmul(acts, to, y.ld(), begin, end, lanes_.at(lane));
    const int64_t at = begin * kTile, upto = std::min(y.channels, end * kTile);
    for (int64_t p = 0; p < count; ++p, to += y.ld()) {
      kernel.affine(to + at, step.scale.data() + at, step.shift.data() + at,
                    residual ? residual + (first + p) * y.ld() + at : nullptr, upto - at, low, high);
      if (end == weight.tiles()) std::fill(to + y.channels, to + y.ld(), 0.0f);
    }
  });
}

void ConvNet::depthwise(const ConvStep& step, const Image& x, const Image& y, Pool::Session& session) {
  zeros_.grow(size_t(x.width * x.ld()) * sizeof(float), Owner::scratch);
  const int64_t top = pad_before(x.height, step.kernel, step.stride);
  session.run(y.height, [&](int64_t row, int) {
    const float* rows[5];
    for (int64_t ky = 0; ky < step.kernel; ++ky) {
      const int64_t at = row * step.stride + ky - top;
      rows[ky] = at >= 0 && at < x.height ? x.data + at * x.width * x.ld() : zeros_.as<float>();
    }
    DepthwiseArgs args{};
    args.rows = rows;
    args.zeros = zeros_.as<float>();
    args.width = x.width;
    args.ldx = x.ld();
    args.before = pad_before(x.width, step.kernel, step.stride);
    args.w = step.taps.data();
    args.ldw = x.ld();
    args.shift = step.shift.data();
    args.kernel = step.kernel;
    args.stride = step.stride;
    args.low = step.relu6 ? 0.0f : -kInfinite;
    args.high = step.relu6 ? 6.0f : kInfinite;
    args.y = y.data + row * y.width * y.ld();
    args.out = y.width;
    args.ldy = y.ld();
    args.channels = y.ld();  // the channels of padding stay zero, having no taps
    kernels().depthwise(&args);
  });
}

}  // namespace headway
