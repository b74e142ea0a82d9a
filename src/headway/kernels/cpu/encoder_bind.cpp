// Python's view of the encoder: `Encoder`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>

#include "binding_tools.h"
#include "bindings.h"
#include "encoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Table = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const int32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct NativeEncoder {
  std::shared_ptr<Encoder> encoder;
  Table tokens, positions;  // what it reads
};

EncoderNorm norm(const nb::dict& d, const char* key, int64_t width) {
  const auto parts = nb::cast<nb::dict>(item(d, key));
  return {numbers(parts, "weight", width), numbers(parts, "bias", width)};
}

EncoderLinear linear(const nb::dict& d, const char* key, int64_t out, int64_t in) {
  const auto parts = nb::cast<nb::dict>(item(d, key));
  const WeightPtr w = nb::cast<NativeWeight>(item(parts, "weight")).weight;
  if (w->out() != out || w->in() != in)
    refuse(std::string(key) + " is " + std::to_string(w->out()) + "x" + std::to_string(w->in()) + ", not " +
           std::to_string(out) + "x" + std::to_string(in));
  return {w, numbers(parts, "bias", out)};
}

NativeEncoder make(const nb::dict& d) {
  NativeEncoder made;
  made.tokens = nb::cast<Table>(item(d, "tokens"));
  made.positions = nb::cast<Table>(item(d, "positions"));
  EncoderConfig c;
  c.width = int64_t(made.tokens.shape(1));
  c.tokens = int64_t(made.tokens.shape(0));
  c.positions = int64_t(made.positions.shape(0));
  c.hidden = nb::cast<int64_t>(item(d, "hidden"));
  c.heads = nb::cast<int64_t>(item(d, "heads"));
  c.norm_eps = nb::cast<float>(item(d, "norm_eps"));
  const auto gelu = nb::cast<std::string>(item(d, "gelu"));
  if (gelu != "erf" && gelu != "tanh") refuse("gelu must be erf or tanh");
  c.gelu = gelu == "tanh";
  if (c.heads < 1 || c.width < 1 || c.width % c.heads || c.hidden < 1) refuse("width must divide by heads");
  if (int64_t(made.positions.shape(1)) != c.width) refuse("positions must be as wide as tokens");
  std::vector<EncoderLayer> layers;
  for (const nb::handle handle : nb::cast<nb::list>(item(d, "layers"))) {
    const auto l = nb::cast<nb::dict>(handle);
    layers.push_back({linear(l, "q", c.width, c.width), linear(l, "k", c.width, c.width),
                      linear(l, "v", c.width, c.width), linear(l, "output", c.width, c.width),
                      linear(l, "up", c.hidden, c.width), linear(l, "down", c.width, c.hidden),
                      norm(l, "attention_norm", c.width), norm(l, "norm", c.width)});
  }
  made.encoder = std::make_shared<Encoder>(c, std::move(layers), made.tokens.data(), made.positions.data(),
                                           numbers(d, "type", c.width), norm(d, "norm", c.width));
  return made;
}

nb::object encode(const NativeEncoder& self, const Numbers& ids, const Numbers& places, const Numbers& offsets,
                  int threads) {
  const EncoderConfig& c = self.encoder->config();
  const auto rows = int64_t(ids.shape(0)), count = int64_t(offsets.shape(0)) - 1;
  if (count < 0 || offsets.data()[0] != 0 || offsets.data()[count] != rows || int64_t(places.shape(0)) != rows)
    refuse("offsets must run from 0 to the number of tokens, of which each has a place");
  for (int64_t i = 0; i < count; ++i)
    if (offsets.data()[i + 1] < offsets.data()[i]) refuse("offsets must not fall");
  for (int64_t r = 0; r < rows; ++r) {
    if (ids.data()[r] < 0 || ids.data()[r] >= c.tokens) refuse("a token lies outside the vocabulary");
    if (places.data()[r] < 0 || places.data()[r] >= c.positions) refuse("a sequence is longer than the positions");
  }
  float* out;
  nb::object result = array({size_t(count), size_t(c.width)}, &out);
  const nb::gil_scoped_release release;
  self.encoder->encode(ids.data(), places.data(), offsets.data(), count, out, threads);
  return result;
}

void bind(nb::module_& m) {
  nb::class_<NativeEncoder>(m, "Encoder").def("encode", &encode, "ids"_a, "places"_a, "offsets"_a, "threads"_a = 0);
  m.def("make_encoder", &make, "description"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
