// The steps of an `ImageNet` that multiply by no packed weight and filter nothing: sums and products of images,
// statistics, norms over an image, attention.
#include <algorithm>
#include <cmath>

#include "image_net.h"
#include "kernels.h"

namespace headway {
namespace {

constexpr int64_t kQueryRows = 48;  // of a task

}  // namespace

void ImageNet::binary(const ImageStep& step, const View& a, const View& b, const View& y, Pool::Session& session) {
  const Kernels& kernel = kernels();
  const int64_t c = y.channels, pixels = y.pixels();
  each_rows(y, session, [&](int64_t first, int64_t rows) {
    float* to = y.data + first * y.ld;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(a.data + (first + r) * a.ld, c, to + r * y.ld);
      std::fill(to + r * y.ld + c, to + (r + 1) * y.ld, 0.0f);
      if (step.kind == Kind::multiply) continue;
      const float* other = b.data + (b.pixels() == 1 ? (first + r) / pixels : first + r) * b.ld;
      if (b.channels == c) kernel.add(to + r * y.ld, other, c);
      else
        for (int64_t i = 0; i < c; ++i) to[r * y.ld + i] += other[0];
    }
    if (step.kind == Kind::multiply) multiply_rows(to, y.ld, first, rows, 0, c, b, pixels);
    finish_rows(step, to, y.ld, rows, 0, c);
  });
}

void ImageNet::statistics(const ImageStep& step, const View& x, const View& y, Pool::Session& session) {
  constexpr int64_t kColumns = 64;
  const int64_t n = x.pixels(), parts = (x.channels + kColumns - 1) / kColumns;
  std::fill(y.data + y.channels, y.data + y.ld, 0.0f);
  session.run(parts, [&](int64_t part, int) {
    const int64_t at = part * kColumns, c = std::min(kColumns, x.channels - at);
    float mean[kColumns] = {0};
    for (int64_t r = 0; r < n; ++r) kernels().add(mean, x.data + r * x.ld + at, c);
    kernels().scale(mean, 1.0f / float(n), c);
    if (step.kind == Kind::mean) {
      std::copy_n(mean, c, y.data + at);
    } else {
      float sums[kColumns] = {0};
      for (int64_t r = 0; r < n; ++r) image_kernels().squares(sums, x.data + r * x.ld + at, mean, c);
      for (int64_t i = 0; i < c; ++i) y.data[at + i] = std::sqrt(sums[i] / step.divisor);
    }
    finish_rows(step, y.data, y.ld, 1, at, at + c);
  });
}

void ImageNet::group_norm(const ImageStep& step, const View& x, const View& y, Pool::Session& session) {
  const int64_t c = x.channels, n = x.pixels();
  std::vector<float> sums(size_t(c), 0.0f), mean(size_t(c), 0.0f);
  for (int64_t r = 0; r < n; ++r) kernels().add(sums.data(), x.data + r * x.ld, c);
  double total = 0;
  for (const float s : sums) total += s;
  std::fill(mean.begin(), mean.end(), float(total / double(c * n)));
  std::fill(sums.begin(), sums.end(), 0.0f);
  for (int64_t r = 0; r < n; ++r) image_kernels().squares(sums.data(), x.data + r * x.ld, mean.data(), c);
  double squares = 0;
  for (const float s : sums) squares += s;
  const auto inverse = float(1.0 / std::sqrt(squares / double(c * n) + double(step.eps)));
  for (int64_t i = 0; i < c; ++i) {
    sums[size_t(i)] = step.scale[size_t(i)] * inverse;
    mean[size_t(i)] = step.shift[size_t(i)] - mean[size_t(i)] * sums[size_t(i)];
  }
  each_rows(y, session, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r) {
      image_kernels().scale_shift(x.data + r * x.ld, sums.data(), mean.data(), c, y.data + r * y.ld);
      std::fill(y.data + r * y.ld + c, y.data + (r + 1) * y.ld, 0.0f);
    }
    finish_rows(step, y.data + first * y.ld, y.ld, rows, 0, c);
  });
}

// y = softmax(q k^T factor + bias) v, head by head: keys and values are packed as tiles, then blocks of queries go
// through two products.
void ImageNet::attention(const ImageStep& step, const View* parts, const View& y, Pool::Session& session) {
  const View &q = parts[0], &k = parts[1], &v = parts[2];
  const int64_t n = q.pixels(), m = k.pixels(), d = step.key_dim, e = step.value_dim;
  const int64_t key_tiles = (m + kTile - 1) / kTile, value_tiles = (e + kTile - 1) / kTile, ldm = key_tiles * kTile;
  const int64_t per_head = key_tiles * kTile * d + value_tiles * kTile * m;
  panels_.grow(size_t(per_head * step.heads) * sizeof(float), Owner::scratch);
  session.run(step.heads, [&](int64_t head, int) {
    float* keys = panels_.as<float>() + head * per_head;
    float* values = keys + key_tiles * kTile * d;
    for (int64_t t = 0; t < key_tiles; ++t)
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t r = t * kTile + i;
        const float* from = k.data + r * k.ld + step.first[1] + head * step.next[1];
        for (int64_t c = 0; c < d; ++c) keys[(t * d + c) * kTile + i] = r < m ? from[c] : 0.0f;
      }
    for (int64_t r = 0; r < m; ++r) {
      const float* from = v.data + r * v.ld + step.first[2] + head * step.next[2];
      for (int64_t t = 0; t < value_tiles; ++t)
        for (int64_t i = 0; i < kTile; ++i)
          values[(t * m + r) * kTile + i] = t * kTile + i < e ? from[t * kTile + i] : 0.0f;
    }
  });
  const int64_t blocks = (n + kQueryRows - 1) / kQueryRows;
  lanes_.reserve(session.lanes(), size_t(kQueryRows * ldm) * sizeof(float));
  session.run(step.heads * blocks, [&](int64_t task, int lane) {
    const int64_t head = task / blocks, first = task % blocks * kQueryRows, rows = std::min(kQueryRows, n - first);
    const float* keys = panels_.as<float>() + head * per_head;
    const float* values = keys + key_tiles * kTile * d;
    const float* queries = q.data + first * q.ld + step.first[0] + head * step.next[0];
    auto* scores = static_cast<float*>(lanes_.at(lane));
    for (int64_t t = 0; t < key_tiles; ++t)
      kernels().dense_panel(keys + t * kTile * d, d, queries, q.ld, rows, scores + t * kTile, ldm, kTile, 0);
    for (int64_t r = 0; r < rows; ++r) {
      kernels().scale(scores + r * ldm, step.factor, m);
      if (!step.bias.empty()) kernels().add(scores + r * ldm, step.bias.data() + (head * n + first + r) * m, m);
      image_kernels().softmax(scores + r * ldm, m);
    }
    float* to = y.data + first * y.ld + head * e;
    for (int64_t t = 0; t < value_tiles; ++t)
      kernels().dense_panel(values + t * kTile * m, m, scores, ldm, rows, to + t * kTile, y.ld,
                            std::min(kTile, e - t * kTile), 0);
    if (head == step.heads - 1)
      for (int64_t r = 0; r < rows; ++r)
        std::fill(y.data + (first + r) * y.ld + y.channels, y.data + (first + r + 1) * y.ld, 0.0f);
    finish_rows(step, y.data + first * y.ld, y.ld, rows, head * e, (head + 1) * e);
  });
}

}  // namespace headway
