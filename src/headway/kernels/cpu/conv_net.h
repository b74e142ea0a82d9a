// A convolutional classifier of inverted residuals, whole, one crossing a batch: the network that
// vision/efficientnet_lite.py spells out. Batch norm is the scale and shift after each product.
//
// Activations are channels-last: a pixel is a row of channels, so that a 1x1 convolution is the product of any weight
// (weight.h). Images go through one by one. A task is a run of pixels with its norm, activation and residual, while
// they are in the second-level cache. Results depend on neither batch nor threads.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "linear.h"
#include "model.h"

namespace headway {

struct ConvStep {
  enum class Kind { stem, pointwise, depthwise } kind = Kind::pointwise;
  WeightPtr weight;        // stem: out x (kernel * kernel * in), taps in rows of the image; pointwise: out x in
  Vector taps;             // depthwise: [kernel * kernel][padded channels], scaled
  Vector scale, shift;     // out, padded with zeros to whole blocks
  int64_t channels = 0, kernel = 1, stride = 1;  // channels: out
  bool relu6 = false;
  bool begins = false;     // what comes in is kept ...
  bool adds = false;       // ... and added to what goes out here
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
  Image room(int64_t height, int64_t width, int64_t channels, const Image& kept);
  void product(const ConvStep& step, const Image& x, const Image& y, const float* residual, const float* planes,
               int64_t height, int64_t width, Pool::Session& session);
  void depthwise(const ConvStep& step, const Image& x, const Image& y, Pool::Session& session);

  int64_t channels_;
  std::vector<ConvStep> steps_;
  WeightPtr classifier_;
  Vector bias_;
  std::mutex busy_;
  Buffer images_[3], zeros_, pooled_;
  std::vector<std::unique_ptr<Acts>> lane_acts_;
  Acts pooled_acts_;
  LaneScratch lanes_, columns_;
};

}  // namespace headway
