// A convolutional classifier of inverted residuals, whole, one crossing a batch: the network that
// vision/efficientnet_lite.py spells out. Batch norm is the scale and shift after each product.
//
// Activations are channels-last: a pixel is a row of channels, so that a 1x1 convolution is the product of any weight
// (weight.h). Images go through one by one. A product and the depthwise convolution after it are one phase: a task
// makes some tiles of 16 channels of a band of rows, and each tile's image, at most kImageBytes, is filtered before it
// leaves the cache. The other products are phases of their own, a task a run of pixels with its norm and residual.
// Results depend on neither batch nor threads nor tiles nor bands. Weights of 8 bits meet 16-bit activations (w8a16.h):
// the logits are those of the exact weights.
//
// EfficientNet-Lite0 at 224 pixels: 0.77 GFLOP, 18.7 MB of weights, 34 phases an image (50 if each convolution were
// one). One Zen 3 core, AVX2, 97 GFLOP/s: at least 7.9 ms; reached 12.1, of which depthwise 1.6 (43 GFLOP/s) and the
// rest 10.5 (67). Lost: 24 and 40 channels filled up to whole tiles, the one pixel of 49 left by blocks of six, and
// products of 16 and 24 columns, which store as long as they sum. With 8-bit weights 9.8 beside 12.7 on a busy machine.
#pragma once
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "linear.h"
#include "model.h"

namespace headway {

struct ConvStep {
  enum class Kind { stem, pointwise, depthwise } kind = Kind::pointwise;
  WeightPtr weight;        // pointwise: out x in
  Vector taps;             // depthwise: [kernel * kernel][padded out], stem: [in][kernel * kernel][padded out]; scaled
  Vector scale, shift;     // out, padded with zeros to whole blocks; scale: pointwise
  int64_t channels = 0, kernel = 1, stride = 1;  // channels: out
  bool relu6 = false;
  bool begins = false;     // what comes in is kept ...
  bool adds = false;       // ... and added to what goes out here

  float low() const { return relu6 ? 0.0f : -std::numeric_limits<float>::infinity(); }
  float high() const { return relu6 ? 6.0f : std::numeric_limits<float>::infinity(); }
};

class ConvNet {
 public:
  ConvNet(int64_t channels, std::vector<ConvStep> steps, WeightPtr classifier, Vector bias);

  int64_t channels() const { return channels_; }
  int64_t classes() const { return classifier_->out(); }
  // images: [count][channels][height][width]; logits: count rows of classes.
  void run(const float* images, int64_t count, int64_t height, int64_t width, float* logits, int threads);

 private:
  struct Image {
    float* data;
    int64_t height, width, channels;
    int64_t ld() const { return round_up(channels, kBlock); }
    int64_t pixels() const { return height * width; }
  };
  // A lane's activations of the phase in progress: those of `part` serve all its shares of the tiles.
  struct LaneActs {
    Acts acts;
    int64_t at = -1;
    const Acts& take(int64_t part, const Weight& weight, const float* x, int64_t ld, int64_t rows);
  };
  Image room(int64_t height, int64_t width, int64_t channels, const Image& kept);
  void lane_acts(int lanes);
  void product(const ConvStep& step, const Image& x, const Image& y, const float* residual, Pool::Session& session);
  // `step` and the depthwise `filter` after it. `planes`: the image as it was given, for the stem.
  void filtered(const ConvStep& step, const ConvStep& filter, const Image& x, const Image& y, const float* planes,
                Pool::Session& session);
  void pad_planes(const ConvStep& step, int64_t first, int64_t rows, const float* planes, const Image& x, float* to,
                  int64_t plane, int64_t wide);
  static void pad(const Image& y, int64_t first, int64_t count);  // zeros from the channels' last tile on

  int64_t channels_;
  std::vector<ConvStep> steps_;
  WeightPtr classifier_;
  Vector bias_;
  std::mutex busy_;
  Buffer images_[3], pooled_;
  std::vector<std::unique_ptr<LaneActs>> lane_acts_;
  Acts pooled_acts_;
  LaneScratch lanes_, between_;
};

}  // namespace headway
