// Python's view of the convolutional net: `ConvNet`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>

#include "binding_tools.h"
#include "bindings.h"
#include "conv_net.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Floats = nb::ndarray<const float, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Images = nb::ndarray<const float, nb::numpy, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

struct NativeConvNet {
  std::shared_ptr<ConvNet> net;
};

Vector padded(const nb::dict& d, const char* key, int64_t length) {
  Vector made = numbers(d, key, length);
  made.resize(size_t(round_up(length, kBlock)), 0.0f);
  return made;
}

ConvStep step_of(const nb::dict& d, int64_t inside, bool first) {
  ConvStep s;
  const auto kind = nb::cast<std::string>(item(d, "kind"));
  if (first != (kind == "stem")) refuse("a stem comes first, and only there");
  s.kernel = nb::cast<int64_t>(item(d, "kernel"));
  s.stride = nb::cast<int64_t>(item(d, "stride"));
  s.relu6 = nb::cast<bool>(item(d, "relu6"));
  s.begins = nb::cast<bool>(item(d, "begins"));
  s.adds = nb::cast<bool>(item(d, "adds"));
  if (s.stride < 1 || s.stride > 8 || s.kernel < 1 || s.kernel > 16) refuse("stride or kernel out of range");
  if (kind == "pointwise") {
    s.weight = nb::cast<NativeWeight>(item(d, "weight")).weight;
    s.channels = s.weight->out();
    if (s.weight->in() != inside || s.kernel != 1 || s.stride != 1) refuse("a weight does not fit");
    s.scale = padded(d, "scale", s.channels);
  } else {
    if (!first && ((s.kernel != 3 && s.kernel != 5) || s.stride > 2))
      refuse("a depthwise kernel must be 3 or 5, its stride 1 or 2");
    s.kind = first ? ConvStep::Kind::stem : ConvStep::Kind::depthwise;
    const auto taps = nb::cast<Table>(item(d, "taps"));
    s.channels = int64_t(taps.shape(1));
    const int64_t count = s.kernel * s.kernel * (first ? inside : 1), ld = round_up(s.channels, kBlock);
    if (int64_t(taps.shape(0)) != count || (!first && s.channels != inside)) refuse("taps do not fit");
    s.taps.assign(size_t(count * ld), 0.0f);
    for (int64_t i = 0; i < count; ++i) std::copy_n(taps.data() + i * s.channels, s.channels, s.taps.begin() + i * ld);
  }
  s.shift = padded(d, "shift", s.channels);
  return s;
}

NativeConvNet make(int64_t channels, const nb::list& described, const NativeWeight& classifier, const Floats& bias) {
  if (channels < 1 || described.size() == 0) refuse("the net has no steps");
  std::vector<ConvStep> steps;
  int64_t inside = channels, kept = 0;
  bool even = false;  // nothing since `begins` changed the size of the image
  for (const nb::handle handle : described) {
    steps.push_back(step_of(nb::cast<nb::dict>(handle), inside, steps.empty()));
    const ConvStep& s = steps.back();
    const ConvStep* before = steps.size() > 1 ? &steps[steps.size() - 2] : nullptr;
    const bool filters = s.kind == ConvStep::Kind::depthwise;
    if (before && before->kind == ConvStep::Kind::stem && !filters) refuse("a depthwise step follows the stem");
    if (filters && (before->kind == ConvStep::Kind::depthwise || before->adds || s.begins))
      refuse("a depthwise step follows the stem or a pointwise step, with which it runs as one");
    if (s.begins) {
      if (steps.size() == 1 || kept) refuse("a step cannot begin a residual here");
      kept = inside;
      even = true;
    }
    even = even && s.stride == 1;
    if (s.adds) {
      if (kept != s.channels || !even || s.begins || s.kind != ConvStep::Kind::pointwise)
        refuse("a residual does not fit");
      kept = 0;
    }
    inside = s.channels;
  }
  if (steps.size() < 2) refuse("a depthwise step follows the stem");
  if (classifier.weight->in() != inside || int64_t(bias.shape(0)) != classifier.weight->out())
    refuse("the classifier does not fit");
  return {std::make_shared<ConvNet>(channels, std::move(steps), classifier.weight,
                                    Vector(bias.data(), bias.data() + bias.shape(0)))};
}

nb::object run(const NativeConvNet& self, const Images& images, int threads) {
  ConvNet& net = *self.net;
  const auto count = int64_t(images.shape(0)), classes = net.classes();
  if (int64_t(images.shape(1)) != net.channels()) refuse("images have the wrong number of channels");
  const auto height = int64_t(images.shape(2)), width = int64_t(images.shape(3));
  if (height < 1 || width < 1 || height > 1 << 14 || width > 1 << 14) refuse("images must be 1 to 16,384 pixels wide");
  float* out;
  nb::object result = array({size_t(count), size_t(classes)}, &out);
  if (count == 0) return result;
  const nb::gil_scoped_release release;
  net.run(images.data(), count, height, width, out, threads);
  return result;
}

void bind(nb::module_& m) {
  nb::class_<NativeConvNet>(m, "ConvNet").def("run", &run, "images"_a, "threads"_a = 0);
  m.def("make_conv_net", &make, "channels"_a, "steps"_a, "classifier"_a, "bias"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
