#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace headway {

Encoder::Encoder(EncoderConfig config, std::vector<EncoderLayer> layers, const float* tokens, const float* positions,
                 Vector type, EncoderNorm norm)
    : config_(config),
      layers_(std::move(layers)),
      tokens_(tokens),
      positions_(positions),
      type_(std::move(type)),
      norm_(std::move(norm)),
      ld_width_(round_up(config.width, kBlock)),
      ld_hidden_(round_up(config.hidden, kBlock)) {}

template <class F> void Encoder::rows(Pool::Session& session, int64_t n, F&& f) {
  const int64_t step = std::max<int64_t>(1, n / (8 * session.lanes()));
  session.run((n + step - 1) / step, [&](int64_t task, int) {
    for (int64_t r = task * step; r < std::min(n, (task + 1) * step); ++r) f(r);
  });
}

void Encoder::encode(const int32_t* ids, const int32_t* places, const int32_t* offsets, int64_t count, float* out,
                     int threads) {
  const std::lock_guard lock(busy_);
  Pool::Session session(threads);
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1;
    while (end < count && offsets[end + 1] - offsets[begin] <= kEncoderRows) ++end;
    group(ids, places, offsets + begin, end - begin, out + begin * config_.width, session);
    begin = end;
  }
}

void Encoder::multiply_by(const EncoderLinear& linear, Acts& acts, float* y, int64_t ldy, Pool::Session& session) {
  const Product product{linear.weight.get(), y, ldy};
  multiply(session, acts, &product, 1, false, lanes_);
}

void Encoder::group(const int32_t* ids, const int32_t* places, const int32_t* offsets, int64_t count, float* out,
                    Pool::Session& session) {
  const Kernels& kernel = kernels();
  const int64_t first = offsets[0], n = offsets[count] - first, width = config_.width;
  for (Buffer* buffer : {&x_, &a_, &q_, &k_, &v_})
    buffer->grow(size_t(n * ld_width_) * sizeof(float), Owner::scratch);
  hidden_.grow(size_t(n * ld_hidden_) * sizeof(float), Owner::scratch);
  const auto x = [&](int64_t r) { return x_.as<float>() + r * ld_width_; };
  const auto a = [&](int64_t r) { return a_.as<float>() + r * ld_width_; };
  const auto add_norm = [&](int64_t r, const Vector& bias, const EncoderNorm& norm) {
    kernel.add(a(r), bias.data(), width);
    kernel.add(x(r), a(r), width);
    kernel.layer_norm(x(r), norm.weight.data(), norm.bias.data(), config_.norm_eps, width, x(r));
  };
  rows(session, n, [&](int64_t r) {
    std::memcpy(x(r), tokens_ + int64_t(ids[first + r]) * width, size_t(width) * sizeof(float));
    kernel.add(x(r), positions_ + int64_t(places[first + r]) * width, width);
    kernel.add(x(r), type_.data(), width);
    kernel.layer_norm(x(r), norm_.weight.data(), norm_.bias.data(), config_.norm_eps, width, x(r));
  });
  for (const EncoderLayer& layer : layers_) {
    x_acts_.reset(x_.as<float>(), ld_width_, n, ld_width_);
    const Product heads[] = {{layer.q.weight.get(), q_.as<float>(), ld_width_},
                             {layer.k.weight.get(), k_.as<float>(), ld_width_},
                             {layer.v.weight.get(), v_.as<float>(), ld_width_}};
    multiply(session, x_acts_, heads, 3, false, lanes_);
    attend(layer, offsets, count, session);
    a_acts_.reset(q_.as<float>(), ld_width_, n, ld_width_);
    multiply_by(layer.output, a_acts_, a_.as<float>(), ld_width_, session);
    rows(session, n, [&](int64_t r) { add_norm(r, layer.output.bias, layer.attention_norm); });
    x_acts_.reset(x_.as<float>(), ld_width_, n, ld_width_);
    multiply_by(layer.up, x_acts_, hidden_.as<float>(), ld_hidden_, session);
    rows(session, n, [&](int64_t r) {
      kernel.gelu(hidden_.as<float>() + r * ld_hidden_, layer.up.bias.data(), config_.hidden, config_.gelu);
    });
    hidden_acts_.reset(hidden_.as<float>(), ld_hidden_, n, ld_hidden_);
    multiply_by(layer.down, hidden_acts_, a_.as<float>(), ld_width_, session);
    rows(session, n, [&](int64_t r) { add_norm(r, layer.down.bias, layer.norm); });
  }
  for (int64_t i = 0; i < count; ++i, out += width) {
    std::memset(out, 0, size_t(width) * sizeof(float));
    const int64_t length = offsets[i + 1] - offsets[i];
    for (int64_t r = offsets[i] - first; r < offsets[i + 1] - first; ++r) kernel.add(out, x(r), width);
    if (length) kernel.scale(out, 1.0f / float(length), width);
    double squares = 0;
    for (int64_t c = 0; c < width; ++c) squares += double(out[c]) * double(out[c]);
    kernel.scale(out, float(1.0 / std::max(std::sqrt(squares), 1e-12)), width);
  }
}

// One head's keys and values of a sequence as f32 pages, then per query: maximum, sum and weighted values; pointers.
size_t Encoder::attend_bytes(int64_t n) const {
  const int64_t d = config_.width / config_.heads;
  const PageShape shape{1, d, round_up(d, 16), kPageF32};
  const int64_t pages = round_up(n, kPageTokens) / kPageTokens;
  const size_t floats = size_t(pages) * page_head_bytes(&shape) / sizeof(float) + attend_scratch_floats(&shape, n) +
                        size_t(n) * size_t(shape.padded_dim + 2) + 64;
  return floats * sizeof(float) + size_t(n) * (2 * sizeof(float*) + 2 * sizeof(int32_t)) +
         size_t(pages) * sizeof(void*) + 9 * 64;
}

void Encoder::attend(const EncoderLayer& layer, const int32_t* offsets, int64_t count, Pool::Session& session) {
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) longest = std::max<int64_t>(longest, offsets[i + 1] - offsets[i]);
  attention_lanes_.reserve(session.lanes(), attend_bytes(longest));
  session.run(count * config_.heads, [&](int64_t task, int lane) {
    const int64_t i = task / config_.heads, n = offsets[i + 1] - offsets[i];
    if (n) attend_head(layer, offsets[i] - offsets[0], n, task % config_.heads,
                       static_cast<char*>(attention_lanes_.at(lane)));
  });
}

// Reads rows of q_, k_ and v_; the result replaces q_.
void Encoder::attend_head(const EncoderLayer& layer, int64_t first, int64_t n, int64_t head, char* scratch) {
  const Kernels& kernel = kernels();
  const int64_t d = config_.width / config_.heads, offset = head * d, dp = round_up(d, 16);
  const auto take = [&scratch]<class T>(T*& p, int64_t count) {
    p = reinterpret_cast<T*>(scratch);
    scratch += round_up(count * int64_t(sizeof(T)), 64);
  };
  AttendArgs args{};
  args.shape = {1, d, dp, kPageF32};
  const auto per_page = int64_t(page_head_bytes(&args.shape) / sizeof(float));
  const int64_t count = round_up(n, kPageTokens) / kPageTokens;
  float* values;
  const void** pages;
  const float** q;
  float** out;
  int32_t *lo, *hi;
  take(values, count * per_page);
  take(args.scratch, int64_t(attend_scratch_floats(&args.shape, n)));
  take(args.m, n);
  take(args.l, n);
  take(args.o, n * dp);
  take(pages, count);
  take(q, n);
  take(out, n);
  take(lo, n);
  take(hi, n);
  for (int64_t i = 0; i < count; ++i) pages[i] = values + i * per_page;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t at = (first + r) * ld_width_ + offset;
    float *query = q_.as<float>() + at, *key = k_.as<float>() + at, *value = v_.as<float>() + at;
    kernel.add(query, layer.q.bias.data() + offset, d);
    kernel.add(key, layer.k.bias.data() + offset, d);
    kernel.add(value, layer.v.bias.data() + offset, d);
    kernel.kv_write(&args.shape, values + r / kPageTokens * per_page, r % kPageTokens, key, value);
    q[r] = out[r] = query;
    lo[r] = 0;
    hi[r] = int32_t(n);
  }
  std::fill_n(args.m, n, -INFINITY);
  std::memset(args.l, 0, size_t(n) * sizeof(float));
  std::memset(args.o, 0, size_t(n * dp) * sizeof(float));
  args.pages = pages;
  args.rows = n;
  args.q = q;
  args.lo = lo;
  args.hi = hi;
  args.key_end = args.fetch_end = n;
  args.scale = 1.0f / std::sqrt(float(d));
  kernel.attend(&args);
  kernel.attend_finish(&args.shape, args.l, args.o, n, out);
}

}  // namespace headway
