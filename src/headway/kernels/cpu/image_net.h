// A network over images and tokens as a list of steps, one crossing a batch: what vision/runtime/ makes of a module.
//
// A register is an image whose pixels are rows of channels (channels-last), or a matrix of tokens: an image one row
// high. Rows are padded with zeros to whole blocks, so that a 1x1 convolution, or a linear layer, is the product of
// any weight (weight.h). Every register is written once; registers that are not needed at the same time share memory.
//
// Where registers are large, images go through one by one, so that they stay in the cache; from `batched_` on, where
// they are small, all together, so that a weight is read once for all of them. A product, or a convolution, and the
// depthwise convolution after it are one phase: a task makes some tiles of 16 channels of a band of rows, and each
// tile's image, at most kImageBytes, is filtered before it leaves the cache. Products are phases of their own, a task
// a run of rows with its norm, residual and activation. Results depend neither on the batch nor on threads, tiles or
// bands. Weights of 8 bits meet 16-bit activations (w8a16.h): what comes out is that of the exact weights.
//
// EfficientNet-Lite0 at 224 pixels: 0.77 GFLOP, 18.7 MB of weights, 34 phases an image (50 if each convolution were
// one). One Zen 3 core, AVX2, 97 GFLOP/s: at least 7.9 ms; reached 12.1, of which depthwise 1.6 (43 GFLOP/s) and the
// rest 10.5 (67). Lost: 24 and 40 channels filled up to whole tiles, the one pixel of 49 left by blocks of six, and
// products of 16 and 24 columns, which store as long as they sum. With 8-bit weights 9.8 beside 12.7 on a busy machine.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "image.h"
#include "linear.h"
#include "model.h"

namespace headway {

struct ImageShape {
  int64_t height = 1, width = 1, channels = 1;
  int64_t pixels() const { return height * width; }
  int64_t ld() const { return round_up(channels, kBlock); }
};

struct ImageStep {
  enum class Kind {
    product,      // y = act(clamp(W x * scale + shift + residual)) * times
    window,       // a convolution of all channels, then as above without residual and times
    depthwise,    // of each channel, likewise
    activate,     // y = act(clamp(x))
    add,          // y = act(clamp(a + b)); b: of the same shape, one pixel, or one channel
    multiply,     // y = act(clamp(a b)); b likewise, or of a part of the channels, over and over
    scale_shift,  // y = act(clamp(x * scale + shift)), channel by channel
    mean,         // of all pixels
    deviation,    // from the mean, of all pixels; the sum of squares by `divisor`
    layer_norm,   // of each pixel over its channels
    group_norm,   // of each image over pixels and channels
    attention,    // of q, k, v: rows of heads
    pick,         // every `stride`-th pixel of a row and every `stride`-th row
    take,         // channels from `begin` on
    join,         // channels of several images side by side
    shuffle,      // channels of a pixel to `stride` by `stride` pixels: channel c s s + i s + j to (i, j) of channel c
  } kind = Kind::product;
  std::vector<int> from;
  int to = 0;
  WeightPtr weight;                        // product: out x in
  int residual = -1, times = -1;           // registers; -1: none
  int64_t kernel = 1, stride = 1, top = 0, left = 0;  // top, left: zeros before the image
  Vector taps;          // window: [tile][kernel][kernel][in][16]; depthwise: [kernel * kernel][padded out]; scaled
  Vector scale, shift;  // out, padded with zeros to whole blocks
  int act = kActClamp;
  Vector slope;         // of kActPrelu: out
  float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
  float eps = 0, divisor = 1;
  int64_t begin = 0;
  // attention: first channel of q, k and v and of each next head; columns of q and k, of v.
  int64_t heads = 1, first[3] = {0, 0, 0}, next[3] = {0, 0, 0}, key_dim = 0, value_dim = 0;
  float factor = 1;
  Vector bias;          // [heads][queries][keys], or empty
};

class ImageNet {
 public:
  // The first `given` registers are what comes in, their channels not padded. `kept`: registers that may be looked at
  // after a run.
  ImageNet(std::vector<ImageShape> registers, std::vector<ImageStep> steps, std::vector<int> kept, int given);

  const std::vector<ImageShape>& registers() const { return registers_; }
  bool kept(int r) const { return keeps_[size_t(r)]; }
  int given() const { return given_; }
  // Of each given register [count][pixels][channels], at most kMostImages images. One caller at a time.
  void run(std::vector<const float*> given, int64_t count, int threads);
  // Of a kept register: [count][pixels][ld] of the last run.
  float* data(int r) { return at(r, 0); }
  int64_t ld(int r) const { return r < given_ ? registers_[size_t(r)].channels : registers_[size_t(r)].ld(); }

  static constexpr int64_t kMostImages = 32;

 private:
  using Kind = ImageStep::Kind;
  // A lane's activations of the phase in progress: those of `part` serve all its shares of the tiles.
  struct LaneActs {
    Acts acts;
    int64_t at = -1;
    const Acts& take(int64_t part, const Weight& weight, const float* x, int64_t ld, int64_t rows);
  };
  // Some images of a register: all that are together, or one.
  struct View {
    float* data;
    int64_t height, width, channels, ld, images;
    int64_t pixels() const { return height * width; }
    int64_t rows() const { return images * pixels(); }
    View image(int64_t i) const { return {data + i * pixels() * ld, height, width, channels, ld, 1}; }
  };
  void plan();
  bool fuses(size_t step) const;
  float* at(int r, int64_t image) const;
  View view(int r, int64_t image, int64_t images) const;
  void lane_acts(int lanes);
  size_t step(size_t at, int64_t image, int64_t images, Pool::Session& session);
  void product(const ImageStep& step, const View& x, const View& y, const View* residual, const View* times,
               Pool::Session& session);
  // `filter`, a depthwise convolution, after `step`; null: of x itself.
  void filtered(const ImageStep* step, const ImageStep& filter, const View& x, const ImageShape& between, const View& y,
                Pool::Session& session);
  void window(const ImageStep& step, const View& x, const View& y, Pool::Session& session);
  void binary(const ImageStep& step, const View& a, const View& b, const View& y, Pool::Session& session);
  void statistics(const ImageStep& step, const View& x, const View& y, Pool::Session& session);
  void group_norm(const ImageStep& step, const View& x, const View& y, Pool::Session& session);
  void attention(const ImageStep& step, const View* parts, const View& y, Pool::Session& session);
  // f(first, rows) for rows of y, in tasks that only pass over them.
  template <class F> void each_rows(const View& y, Pool::Session& session, F&& f) {
    constexpr int64_t kTaskFloats = 8 << 10;
    const int64_t n = y.rows(), step = std::max<int64_t>(1, kTaskFloats / y.ld);
    if (n <= step) return f(int64_t(0), n);
    session.run((n + step - 1) / step, [&](int64_t task, int) { f(task * step, std::min(step, n - task * step)); });
  }
  static void pad(const View& y, int64_t first, int64_t count);  // zeros from the channels' last tile on
  static void multiply_rows(float* y, int64_t ldy, int64_t first, int64_t rows, int64_t begin, int64_t end,
                            const View& times, int64_t pixels);
  // Bounds and activation of channels [begin, end) of rows at `y`, where the step has any.
  static void finish_rows(const ImageStep& step, float* y, int64_t ldy, int64_t rows, int64_t begin, int64_t end);
  // The activation alone: the kernel has kept the bounds.
  static void act_rows(const ImageStep& step, float* y, int64_t ldy, int64_t rows, int64_t begin, int64_t end);

  std::vector<ImageShape> registers_;
  std::vector<ImageStep> steps_;
  std::vector<bool> keeps_;
  std::vector<int> uses_;      // of each register, by steps
  std::vector<int> buffer_;    // of each register; -1: never stored
  std::vector<bool> together_; // of each buffer: holds all images
  std::vector<size_t> need_;   // of each buffer: floats of one image
  size_t batched_ = 0;         // the first step that takes all images at once
  int given_ = 1;
  std::vector<const float*> inputs_;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<LaneActs>> lane_acts_;
  LaneScratch lanes_, between_;
  Buffer panels_;
};

}  // namespace headway
