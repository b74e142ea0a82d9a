#include "image_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "kernels.h"
#include "w8a16_weight.h"

namespace headway {

const ImageKernels& image_kernels() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return image_avx512;
    case Isa::avx2: return image_avx2;
    default: break;
  }
#endif
  return image_portable;
}

namespace {

constexpr int64_t kBlockRows = 12;  // a multiple of the rows of a dense block at every level
constexpr int64_t kTaskPixels = 16 * kBlockRows;
constexpr size_t kImageBytes = 128 << 10;    // of a tile's image between two convolutions: within the second level
constexpr size_t kTogetherBytes = 192 << 10;  // registers of this size and smaller take all images at once

}  // namespace

ImageNet::ImageNet(std::vector<ImageShape> registers, std::vector<ImageStep> steps, std::vector<int> kept, int given)
    : registers_(std::move(registers)), steps_(std::move(steps)), given_(given) {
  for (ImageStep& step : steps_)
    if (step.weight) step.weight = with_wide_activations(std::move(step.weight));
  keeps_.assign(registers_.size(), false);
  for (const int r : kept) keeps_[size_t(r)] = true;
  plan();
}

// A step that runs as one with the depthwise step after it: what is between is nobody else's, and its padding stays 0.
bool ImageNet::fuses(size_t at) const {
  const ImageStep& step = steps_[at];
  if (at + 1 >= steps_.size() || (step.kind != Kind::product && step.kind != Kind::window)) return false;
  const ImageStep& next = steps_[at + 1];
  if (next.kind != Kind::depthwise || next.from[0] != step.to || uses_[size_t(step.to)] != 1) return false;
  return !keeps_[size_t(step.to)] && step.residual < 0 && step.times < 0 && step.act == kActClamp && step.low <= 0 &&
         step.high >= 0;
}

void ImageNet::plan() {
  const size_t n = registers_.size();
  uses_.assign(n, 0);
  buffer_.assign(n, -1);
  const auto reads = [](const ImageStep& step) {
    std::vector<int> all = step.from;
    for (const int r : {step.residual, step.times})
      if (r >= 0) all.push_back(r);
    return all;
  };
  for (const ImageStep& step : steps_)
    for (const int r : reads(step)) ++uses_[size_t(r)];
  const auto bytes = [&](int r) {
    const ImageShape& shape = registers_[size_t(r)];
    return size_t(shape.pixels() * ld(r)) * sizeof(float);
  };
  batched_ = steps_.size();
  while (batched_ > 0) {
    const ImageStep& step = steps_[batched_ - 1];
    const auto large = [&](int r) { return bytes(r) > kTogetherBytes; };
    const std::vector<int> read = reads(step);
    if (large(step.to) || std::any_of(read.begin(), read.end(), large)) break;
    --batched_;
  }
  if (batched_ > 0 && batched_ < steps_.size() && fuses(batched_ - 1)) ++batched_;
  std::vector<size_t> last(n, 0);  // the step after which a register is free
  std::vector<bool> late(n, false);
  for (size_t i = 0; i < steps_.size(); ++i)
    for (const int r : reads(steps_[i])) {
      last[size_t(r)] = i;
      if (i >= batched_) late[size_t(r)] = true;
    }
  std::vector<int> taken;  // by buffer: the register in it, or -1
  for (size_t i = 0; i < steps_.size(); ++i) {
    const bool fused = fuses(i);
    const size_t end = fused ? i + 1 : i;
    const auto to = size_t(steps_[end].to);
    const bool together = late[to] || keeps_[to] || end >= batched_;
    const size_t floats = bytes(int(to)) / sizeof(float);
    int best = -1;
    for (size_t b = 0; b < taken.size(); ++b)
      if (taken[b] < 0 && together_[b] == together &&
          (best < 0 || (need_[b] >= floats) > (need_[size_t(best)] >= floats) ||
           ((need_[b] >= floats) == (need_[size_t(best)] >= floats) && need_[b] < need_[size_t(best)])))
        best = int(b);
    if (best < 0 || keeps_[to]) {
      best = int(taken.size());
      taken.push_back(-1);
      together_.push_back(together);
      need_.push_back(0);
    }
    taken[size_t(best)] = int(to);
    need_[size_t(best)] = std::max(need_[size_t(best)], floats);
    buffer_[to] = best;
    for (int& held : taken)
      if (held >= 0 && !keeps_[size_t(held)] && last[size_t(held)] <= end && (uses_[size_t(held)] > 0 || held != int(to)))
        held = -1;
    i = end;
  }
  buffers_.resize(taken.size());
}

float* ImageNet::at(int r, int64_t image) const {
  const ImageShape& shape = registers_[size_t(r)];
  if (r < given_) return const_cast<float*>(inputs_[size_t(r)]) + image * shape.pixels() * shape.channels;
  const auto b = size_t(buffer_[size_t(r)]);
  return buffers_[b].as<float>() + (together_[b] ? image * shape.pixels() * shape.ld() : 0);
}

ImageNet::View ImageNet::view(int r, int64_t image, int64_t images) const {
  const ImageShape& shape = registers_[size_t(r)];
  return {at(r, image), shape.height, shape.width, shape.channels, ld(r), images};
}

void ImageNet::run(std::vector<const float*> given, int64_t count, int threads) {
  Pool::Session session(threads);
  inputs_ = std::move(given);
  for (size_t b = 0; b < buffers_.size(); ++b)
    buffers_[b].grow(need_[b] * size_t(together_[b] ? count : 1) * sizeof(float), Owner::scratch);
  for (int64_t i = 0; i < count; ++i)
    for (size_t s = 0; s < batched_;) s = step(s, i, 1, session);
  for (size_t s = batched_; s < steps_.size();) s = step(s, 0, count, session);
}

// One step, or two that are one; where to go on.
size_t ImageNet::step(size_t index, int64_t image, int64_t images, Pool::Session& session) {
  const ImageStep& step = steps_[index];
  const View x = view(step.from[0], image, images);
  if (fuses(index)) {
    const ImageStep& filter = steps_[index + 1];
    const View y = view(filter.to, image, images);
    for (int64_t i = 0; i < images; ++i)
      filtered(&step, filter, x.image(i), registers_[size_t(step.to)], y.image(i), session);
    return index + 2;
  }
  const View y = view(step.to, image, images);
  const auto per_image = [&](auto&& f) {
    for (int64_t i = 0; i < images; ++i) f(x.image(i), y.image(i));
  };
  switch (step.kind) {
    case Kind::product: {
      View residual{}, times{};
      if (step.residual >= 0) residual = view(step.residual, image, images);
      if (step.times >= 0) times = view(step.times, image, images);
      product(step, x, y, step.residual >= 0 ? &residual : nullptr, step.times >= 0 ? &times : nullptr, session);
      break;
    }
    case Kind::window:
      per_image([&](const View& a, const View& b) { window(step, a, b, session); });
      break;
    case Kind::depthwise:
      per_image([&](const View& a, const View& b) {
        filtered(nullptr, step, a, registers_[size_t(step.from[0])], b, session);
      });
      break;
    case Kind::add:
    case Kind::multiply:
      binary(step, x, view(step.from[1], image, images), y, session);
      break;
    case Kind::mean:
      per_image([&](const View& a, const View& b) { statistics(step, a, b, session); });
      break;
    case Kind::deviation:
      per_image([&](const View& a, const View& b) { statistics(step, a, b, session); });
      break;
    case Kind::group_norm:
      per_image([&](const View& a, const View& b) { group_norm(step, a, b, session); });
      break;
    case Kind::attention:
      for (int64_t i = 0; i < images; ++i) {
        View parts[3];
        for (int p = 0; p < 3; ++p) parts[p] = view(step.from[size_t(p)], image, images).image(i);
        attention(step, parts, y.image(i), session);
      }
      break;
    case Kind::shuffle:
      per_image([&](const View& a, const View& b) {
        const int64_t s = step.stride;
        for (int64_t r = 0; r < b.height; ++r)
          for (int64_t c = 0; c < b.width; ++c) {
            float* to = b.data + (r * b.width + c) * b.ld;
            const float* from = a.data + (r / s * a.width + c / s) * a.ld + r % s * s + c % s;
            for (int64_t i = 0; i < b.channels; ++i) to[i] = from[i * s * s];
            std::fill(to + b.channels, to + b.ld, 0.0f);
          }
      });
      break;
    case Kind::pick:
      per_image([&](const View& a, const View& b) {
        for (int64_t r = 0; r < b.height; ++r)
          for (int64_t c = 0; c < b.width; ++c) {
            float* to = b.data + (r * b.width + c) * b.ld;
            const float* from = a.data + (r * step.stride * a.width + c * step.stride) * a.ld;
            std::copy_n(from, b.channels, to);
            std::fill(to + b.channels, to + b.ld, 0.0f);
          }
      });
      break;
    default: {
      const ImageKernels& kernel = image_kernels();
      each_rows(y, session, [&](int64_t first, int64_t rows) {
        const int64_t c = y.channels;
        for (int64_t r = first; r < first + rows; ++r) {
          float* to = y.data + r * y.ld;
          const float* from = x.data + r * x.ld;
          if (step.kind == Kind::scale_shift) kernel.scale_shift(from, step.scale.data(), step.shift.data(), c, to);
          else if (step.kind == Kind::layer_norm)
            kernels().layer_norm(from, step.scale.data(), step.shift.data(), step.eps, c, to);
          else if (step.kind == Kind::join) {
            int64_t done = 0;
            for (const int part : step.from) {
              const View v = view(part, image, images);
              std::copy_n(v.data + r * v.ld, v.channels, to + done);
              done += v.channels;
            }
          } else {
            std::copy_n(from + step.begin, c, to);
          }
          std::fill(to + c, to + y.ld, 0.0f);
        }
        finish_rows(step, y.data + first * y.ld, y.ld, rows, 0, c);
      });
    }
  }
  return index + 1;
}

void ImageNet::finish_rows(const ImageStep& step, float* y, int64_t ldy, int64_t rows, int64_t begin, int64_t end) {
  if (step.act != kActClamp) act_rows(step, y, ldy, rows, begin, end);
  else if (std::isfinite(step.low) || std::isfinite(step.high))
    image_kernels().activate(y + begin, ldy, rows, end - begin, kActClamp, step.low, step.high, nullptr);
}

void ImageNet::act_rows(const ImageStep& step, float* y, int64_t ldy, int64_t rows, int64_t begin, int64_t end) {
  if (step.act != kActClamp)
    image_kernels().activate(y + begin, ldy, rows, end - begin, step.act, 0, 0, step.slope.data() + begin);
}

void ImageNet::lane_acts(int lanes) {
  while (int64_t(lane_acts_.size()) < lanes) lane_acts_.push_back(std::make_unique<LaneActs>());
  for (const auto& lane : lane_acts_) lane->at = -1;
}

const Acts& ImageNet::LaneActs::take(int64_t part, const Weight& weight, const float* x, int64_t ld, int64_t rows) {
  if (part == at) return acts;
  at = part;
  acts.reset(x, ld, rows, ld);
  if (const FormSpec* form = weight.form(rows)) acts.ensure(*form);
  return acts;
}

// Channels [begin, end) of rows [first, first + rows) of an image's y times what `times` has there: a row for each row
// or one for a whole image, its channels over and over.
void ImageNet::multiply_rows(float* y, int64_t ldy, int64_t first, int64_t rows, int64_t begin, int64_t end,
                             const View& times, int64_t pixels) {
  const ImageKernels& kernel = image_kernels();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = times.pixels() == 1 ? (first + r) / pixels : first + r;
    const float* a = times.data + row * times.ld;
    if (times.channels == 1) {
      kernels().scale(y + r * ldy + begin, a[0], end - begin);
      continue;
    }
    for (int64_t c = begin; c < end;) {
      const int64_t from = c % times.channels, n = std::min(end - c, times.channels - from);
      kernel.multiply(y + r * ldy + c, a + from, n);
      c += n;
    }
  }
}

void ImageNet::product(const ImageStep& step, const View& x, const View& y, const View* residual, const View* times,
                       Pool::Session& session) {
  const Weight& weight = *step.weight;
  const int64_t cols = weight.padded_in(), n = y.rows(), pixels = y.pixels();
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
    float* to = y.data + first * y.ld;
    const Finish finish{step.scale.data(), step.shift.data(), residual ? residual->data + first * y.ld : nullptr, y.ld,
                        step.low, step.high, 0, 0};
    weight.matmul_finish(acts, to, y.ld, begin, end, lanes_.at(lane), finish);
    const int64_t from = begin * kTile, till = std::min(end * kTile, y.channels);
    act_rows(step, to, y.ld, count, from, till);
    if (times) multiply_rows(to, y.ld, first, count, from, till, *times, pixels);
    if (end == weight.tiles()) pad(y, first, count);
  });
}

void ImageNet::pad(const View& y, int64_t first, int64_t count) {
  const int64_t whole = round_up(y.channels, kTile);
  for (int64_t p = first; whole < y.ld && p < first + count; ++p)
    std::fill(y.data + p * y.ld + whole, y.data + (p + 1) * y.ld, 0.0f);
}

namespace {

// Bands of rows of a result, and the rows of the image before it that each needs.
struct Bands {
  int64_t height, rows, count;  // of the result; of a band; bands
  int64_t kernel, stride, top, inside;

  // `bytes`: of one row of the image before.
  Bands(int64_t height, int64_t kernel, int64_t stride, int64_t top, int64_t inside, size_t bytes)
      : height(height), kernel(kernel), stride(stride), top(top), inside(inside) {
    const int64_t most = std::max<int64_t>(1, (int64_t(kImageBytes / bytes) - kernel) / stride + 1);
    const int64_t parts = (height + most - 1) / most;
    rows = (height + parts - 1) / parts;
    count = (height + rows - 1) / rows;
  }
  int64_t most_inside() const { return (rows - 1) * stride + kernel; }

  struct Band {
    int64_t out, rows;    // of the result
    int64_t in, in_rows;  // of the image before, from `in`, which may be negative
    int64_t begin, end;   // of these, the ones inside it
  };
  Band at(int64_t i) const {
    Band b{i * rows, std::min(rows, height - i * rows), i * rows * stride - top, 0, 0, 0};
    b.in_rows = (b.rows - 1) * stride + kernel;
    b.begin = std::clamp<int64_t>(b.in, 0, inside);
    b.end = std::clamp<int64_t>(b.in + b.in_rows, b.begin, inside);
    return b;
  }
};

// Rows [first, first + rows) of an image, `take` channels from `channel` on, to pixels of `take` floats in lines of
// `line` pixels from `left` on; what is outside the image is 0.
void pad_rows(const float* x, int64_t height, int64_t width, int64_t ld, int64_t channel, int64_t take, int64_t first,
              int64_t rows, int64_t left, int64_t line, float* to) {
  for (int64_t r = first; r < first + rows; ++r, to += line * take) {
    if (r < 0 || r >= height) {
      std::fill(to, to + line * take, 0.0f);
      continue;
    }
    const int64_t n = std::clamp<int64_t>(line - left, 0, width);
    std::fill(to, to + std::min(left, line) * take, 0.0f);
    const float* from = x + r * width * ld + channel;
    float* pixel = to + left * take;
    if (ld == take) std::copy_n(from, n * take, pixel);
    else
      for (int64_t c = 0; c < n; ++c) std::memcpy(pixel + c * take, from + c * ld, size_t(take) * sizeof(float));
    std::fill(to + std::min(line, left + n) * take, to + line * take, 0.0f);
  }
}

}  // namespace

void ImageNet::filtered(const ImageStep* step, const ImageStep& filter, const View& x, const ImageShape& between,
                        const View& y, Pool::Session& session) {
  const bool window = step && step->kind == Kind::window;
  const int64_t height = between.height, width = between.width;
  const int64_t k = filter.kernel, stride = filter.stride, left = filter.left;
  const int64_t line = std::max((y.width - 1) * stride + k, left + width);  // pixels of a row with its padding
  const Bands bands(y.height, k, stride, filter.top, height, size_t(line * kTile) * sizeof(float));
  const int64_t tiles = round_up(between.channels, kTile) / kTile;
  const int lanes = session.lanes();
  const int64_t shares = lanes < 2 ? 1 : std::min(tiles, std::max<int64_t>(1, 4 * lanes / bands.count));
  const int64_t share = (tiles + shares - 1) / shares;
  const int64_t image = bands.most_inside() * line * kTile;
  // A window's own input, padded.
  const int64_t wide = window ? (width - 1) * step->stride + step->kernel : 0;
  const int64_t padded =
      window ? ((bands.most_inside() - 1) * step->stride + step->kernel) * wide * x.channels : 0;
  between_.reserve(lanes, size_t(image + padded) * sizeof(float));
  size_t scratch = 64;
  if (step && !window) {
    lane_acts(lanes);
    for (int64_t i = 0; i < bands.count; ++i) {
      const Bands::Band b = bands.at(i);
      const int64_t count = (b.end - b.begin) * width;
      scratch = std::max(scratch, step->weight->scratch_bytes(count));
      const FormSpec* form = step->weight->form(count);
      for (int lane = 0; form && lane < lanes; ++lane) {
        lane_acts_[size_t(lane)]->acts.reset(x.data, x.ld, count, x.ld);
        lane_acts_[size_t(lane)]->acts.reserve(*form);
      }
    }
  }
  lanes_.reserve(lanes, scratch);
  session.run(bands.count * shares, [&](int64_t task, int lane) {
    const Bands::Band b = bands.at(task / shares);
    const int64_t first = task % shares * share, end = std::min(tiles, first + share);
    if (first >= end) return;
    auto* image_of_tile = static_cast<float*>(between_.at(lane));
    float* inside = image_of_tile + ((b.begin - b.in) * line + left) * kTile;
    float* rows_of_window = image_of_tile + image;
    const Acts* acts = nullptr;
    if (step) std::fill(image_of_tile, image_of_tile + b.in_rows * line * kTile, 0.0f);
    if (window)
      pad_rows(x.data, x.height, x.width, x.ld, 0, x.channels, b.begin * step->stride - step->top,
               (b.end - b.begin - 1) * step->stride + step->kernel, step->left, wide, rows_of_window);
    else if (step)
      acts = &lane_acts_[size_t(lane)]->take(task / shares, *step->weight, x.data + b.begin * width * x.ld, x.ld,
                                             (b.end - b.begin) * width);
    for (int64_t tile = first; tile < end; ++tile) {
      const int64_t at = tile * kTile;
      if (window) {
        const WindowArgs args{rows_of_window, x.channels, wide,
                              step->taps.data() + at * step->kernel * step->kernel * x.channels, kTile,
                              step->shift.data() + at, step->kernel, step->stride, step->low, step->high, inside,
                              b.end - b.begin, width, kTile, line * kTile};
        image_kernels().window(&args);
      } else if (step) {
        const Finish finish{step->scale.data(), step->shift.data(), nullptr, 0, step->low, step->high, width,
                            (line - width) * kTile};
        step->weight->matmul_finish(*acts, inside - at, kTile, tile, tile + 1, lanes_.at(lane), finish);
      } else {
        pad_rows(x.data, height, width, x.ld, at, kTile, b.in, b.in_rows, left, line, image_of_tile);
      }
      float* to = y.data + b.out * y.width * y.ld + at;
      const DepthwiseArgs args{image_of_tile, line, filter.taps.data() + at, round_up(between.channels, kBlock),
                               filter.shift.data() + at, k, stride, filter.low, filter.high, to, b.rows, y.width, y.ld};
      image_kernels().depthwise(&args);
      act_rows(filter, to - at, y.ld, b.rows * y.width, at, std::min(at + kTile, y.channels));
    }
    if (end == tiles) pad(y, b.out * y.width, b.rows * y.width);
  });
}

void ImageNet::window(const ImageStep& step, const View& x, const View& y, Pool::Session& session) {
  const int64_t line = (y.width - 1) * step.stride + step.kernel;
  const Bands bands(y.height, step.kernel, step.stride, step.top, x.height, size_t(line * x.channels) * sizeof(float));
  const int64_t tiles = round_up(y.channels, kTile) / kTile;
  const int lanes = session.lanes();
  const int64_t shares = lanes < 2 ? 1 : std::min(tiles, std::max<int64_t>(1, 4 * lanes / bands.count));
  const int64_t share = (tiles + shares - 1) / shares;
  between_.reserve(lanes, size_t(bands.most_inside() * line * x.channels) * sizeof(float));
  session.run(bands.count * shares, [&](int64_t task, int lane) {
    const Bands::Band b = bands.at(task / shares);
    const int64_t first = task % shares * share, end = std::min(tiles, first + share);
    if (first >= end) return;
    auto* padded = static_cast<float*>(between_.at(lane));
    pad_rows(x.data, x.height, x.width, x.ld, 0, x.channels, b.in, b.in_rows, step.left, line, padded);
    float* to = y.data + b.out * y.width * y.ld;
    for (int64_t tile = first; tile < end; ++tile) {
      const int64_t at = tile * kTile;
      const WindowArgs args{padded, x.channels, line, step.taps.data() + at * step.kernel * step.kernel * x.channels,
                            kTile, step.shift.data() + at, step.kernel, step.stride, step.low, step.high, to + at,
                            b.rows, y.width, y.ld, y.width * y.ld};
      image_kernels().window(&args);
    }
    const int64_t from = first * kTile, till = std::min(end * kTile, y.channels);
    act_rows(step, to, y.ld, b.rows * y.width, from, till);
    if (end == tiles) pad(y, b.out * y.width, b.rows * y.width);
  });
}

}  // namespace headway
