// Python's view of networks over images: `ImageNet`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "binding_tools.h"
#include "bindings.h"
#include "image_net.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Rows = nb::ndarray<const float, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Kind = ImageStep::Kind;
using Shapes = std::vector<ImageShape>;
constexpr int64_t kMostPixels = int64_t(1) << 28, kMostChannels = int64_t(1) << 20;

struct NativeImageNet {
  explicit NativeImageNet(ImageNet made) : net(std::move(made)) {}
  ImageNet net;
  std::mutex busy;
};

const std::map<std::string, Kind> kKinds = {
    {"product", Kind::product},         {"window", Kind::window},         {"depthwise", Kind::depthwise},
    {"activate", Kind::activate},       {"add", Kind::add},               {"multiply", Kind::multiply},
    {"scale_shift", Kind::scale_shift}, {"mean", Kind::mean},             {"deviation", Kind::deviation},
    {"layer_norm", Kind::layer_norm},   {"group_norm", Kind::group_norm}, {"attention", Kind::attention},
    {"pick", Kind::pick},               {"take", Kind::take},             {"join", Kind::join},
    {"shuffle", Kind::shuffle}};
const std::map<std::string, int> kActs = {{"clamp", kActClamp},
                                          {"gelu", kActGelu},
                                          {"gelu_tanh", kActGeluTanh},
                                          {"silu", kActSilu},
                                          {"hard_swish", kActHardSwish},
                                          {"hard_sigmoid", kActHardSigmoid},
                                          {"sigmoid", kActSigmoid},
                                          {"prelu", kActPrelu}};

template <class T> T get(const nb::dict& d, const char* key, T otherwise) {
  return d.contains(key) ? nb::cast<T>(d[key]) : otherwise;
}
template <class Map> typename Map::mapped_type named(const Map& map, const std::string& name) {
  const auto found = map.find(name);
  if (found == map.end()) refuse("there is no '" + name + "'");
  return found->second;
}
void fit(bool ok, const char* what) {
  if (!ok) refuse(std::string("a step does not fit: ") + what);
}

Vector padded(const nb::dict& d, const char* key, int64_t length) {
  Vector made = numbers(d, key, length);
  made.resize(size_t(round_up(length, kBlock)), 0.0f);
  return made;
}

bool same(const ImageShape& a, const ImageShape& b) {
  return a.height == b.height && a.width == b.width && a.channels == b.channels;
}
// One pixel of it for each of `all`, or one for all.
bool spreads(const ImageShape& one, const ImageShape& all) {
  return one.pixels() == 1 || (one.height == all.height && one.width == all.width);
}

int read_register(int r, const Shapes& shapes, const std::vector<bool>& written) {
  if (r < 0 || size_t(r) >= shapes.size() || !written[size_t(r)]) refuse("a step reads what no step before it made");
  return r;
}

void read_taps(ImageStep& s, const nb::dict& d, const ImageShape& x, const ImageShape& y) {
  s.top = nb::cast<int64_t>(item(d, "top"));
  s.left = nb::cast<int64_t>(item(d, "left"));
  fit(s.kernel >= 1 && s.kernel <= 64 && s.stride >= 1 && s.stride <= 64, "its kernel or stride");
  fit(s.top >= 0 && s.left >= 0 && s.top < s.kernel && s.left < s.kernel, "its padding");
  // Below and to the right there may be less padding than rows or columns of the kernel.
  const auto reaches = [&](int64_t out, int64_t before, int64_t in) {
    const int64_t end = (out - 1) * s.stride - before + s.kernel;
    return end - in < s.kernel;
  };
  fit(reaches(y.height, s.top, x.height) && reaches(y.width, s.left, x.width), "its image");
  const int64_t k2 = s.kernel * s.kernel;
  s.shift = padded(d, "shift", y.channels);
  if (s.kind == Kind::depthwise) {
    fit(s.kernel == 2 || s.kernel == 3 || s.kernel == 5 || s.kernel == 7, "a depthwise kernel is 2, 3, 5 or 7");
    fit(s.stride <= 2 && x.channels == y.channels, "a depthwise convolution");
    const Vector taps = numbers(d, "taps", k2 * y.channels);
    const int64_t ld = y.ld();
    s.taps.assign(size_t(k2 * ld), 0.0f);
    for (int64_t i = 0; i < k2; ++i) std::copy_n(taps.data() + i * y.channels, y.channels, s.taps.begin() + i * ld);
    return;
  }
  const int64_t n = k2 * x.channels, tiles = (y.channels + kTile - 1) / kTile;
  const Vector taps = numbers(d, "taps", n * y.channels);  // [kernel][kernel][in][out]
  s.taps.assign(size_t(tiles * n * kTile), 0.0f);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < y.channels; ++c)
      s.taps[size_t((c / kTile * n + i) * kTile + c % kTile)] = taps[size_t(i * y.channels + c)];
}

void read_attention(ImageStep& s, const nb::dict& d, const Shapes& shapes, const ImageShape& y) {
  fit(s.from.size() == 3, "attention is of q, k and v");
  s.heads = nb::cast<int64_t>(item(d, "heads"));
  s.key_dim = nb::cast<int64_t>(item(d, "key_dim"));
  s.value_dim = nb::cast<int64_t>(item(d, "value_dim"));
  s.factor = nb::cast<float>(item(d, "factor"));
  const auto first = nb::cast<std::vector<int64_t>>(item(d, "first"));
  const auto next = nb::cast<std::vector<int64_t>>(item(d, "next"));
  fit(first.size() == 3 && next.size() == 3 && s.heads >= 1 && s.heads <= kMostChannels, "its heads");
  fit(s.key_dim >= 1 && s.key_dim <= kMostChannels && s.value_dim >= 1 && s.value_dim <= kMostChannels, "its heads");
  for (int p = 0; p < 3; ++p) {
    s.first[p] = first[size_t(p)];
    s.next[p] = next[size_t(p)];
    const int64_t dim = p == 2 ? s.value_dim : s.key_dim;
    fit(s.first[p] >= 0 && s.next[p] >= 0 && s.first[p] <= kMostChannels && s.next[p] <= kMostChannels, "its heads");
    fit(s.first[p] + (s.heads - 1) * s.next[p] + dim <= shapes[size_t(s.from[size_t(p)])].channels, "its heads");
  }
  const ImageShape &q = shapes[size_t(s.from[0])], &k = shapes[size_t(s.from[1])], &v = shapes[size_t(s.from[2])];
  fit(q.pixels() == y.pixels() && k.pixels() == v.pixels() && y.channels == s.heads * s.value_dim, "its rows");
  if (d.contains("bias")) s.bias = numbers(d, "bias", s.heads * q.pixels() * k.pixels());
}

ImageStep step_of(const nb::dict& d, const Shapes& shapes, std::vector<bool>& written, int given) {
  ImageStep s;
  s.kind = named(kKinds, nb::cast<std::string>(item(d, "kind")));
  s.to = nb::cast<int>(item(d, "to"));
  if (s.to < given || size_t(s.to) >= shapes.size() || written[size_t(s.to)]) refuse("a step makes no register of its own");
  for (const int r : nb::cast<std::vector<int>>(item(d, "from"))) s.from.push_back(read_register(r, shapes, written));
  const bool pair = s.kind == Kind::add || s.kind == Kind::multiply;
  const bool many = s.kind == Kind::join || s.kind == Kind::attention;
  fit(many ? !s.from.empty() : s.from.size() == (pair ? 2u : 1u), "how many it reads");
  const ImageShape &x = shapes[size_t(s.from[0])], &y = shapes[size_t(s.to)];
  s.kernel = get<int64_t>(d, "kernel", 1);
  s.stride = get<int64_t>(d, "stride", 1);
  s.act = named(kActs, get<std::string>(d, "act", "clamp"));
  s.low = get<float>(d, "low", s.low);
  s.high = get<float>(d, "high", s.high);
  if (s.act == kActPrelu) s.slope = numbers(d, "slope", y.channels);
  const bool even = x.height == y.height && x.width == y.width;
  const auto padded_rows = [&](int r) { return r >= given || shapes[size_t(r)].ld() == shapes[size_t(r)].channels; };
  switch (s.kind) {
    case Kind::product:
      s.weight = nb::cast<NativeWeight>(item(d, "weight")).weight;
      fit(s.weight->in() == x.channels && s.weight->out() == y.channels && even && padded_rows(s.from[0]), "its weight");
      s.scale = padded(d, "scale", y.channels);
      s.shift = padded(d, "shift", y.channels);
      if (d.contains("residual")) {
        s.residual = read_register(nb::cast<int>(d["residual"]), shapes, written);
        fit(same(shapes[size_t(s.residual)], y) && padded_rows(s.residual), "its residual");
      }
      if (d.contains("times")) {
        s.times = read_register(nb::cast<int>(d["times"]), shapes, written);
        fit(spreads(shapes[size_t(s.times)], y) && y.channels % shapes[size_t(s.times)].channels == 0, "its factor");
      }
      break;
    case Kind::window:
    case Kind::depthwise:
      fit(s.kind == Kind::window || padded_rows(s.from[0]), "its image");
      read_taps(s, d, x, y);
      break;
    case Kind::add:
    case Kind::multiply: {
      const ImageShape& b = shapes[size_t(s.from[1])];
      fit(same(x, y) && spreads(b, y), "its images");
      fit(b.channels == 1 || (s.kind == Kind::add ? b.channels == y.channels : y.channels % b.channels == 0), "its channels");
      break;
    }
    case Kind::activate: fit(same(x, y), "its image"); break;
    case Kind::layer_norm:
    case Kind::group_norm:
      s.eps = nb::cast<float>(item(d, "eps"));
      [[fallthrough]];
    case Kind::scale_shift:
      fit(same(x, y), "its image");
      s.scale = padded(d, "scale", y.channels);
      s.shift = padded(d, "shift", y.channels);
      break;
    case Kind::deviation:
      s.divisor = nb::cast<float>(item(d, "divisor"));
      fit(s.divisor > 0, "its divisor");
      [[fallthrough]];
    case Kind::mean: fit(y.pixels() == 1 && y.channels == x.channels, "its image"); break;
    case Kind::attention: read_attention(s, d, shapes, y); break;
    case Kind::pick:
      fit(s.stride >= 1 && x.channels == y.channels && (y.height - 1) * s.stride < x.height &&
              (y.width - 1) * s.stride < x.width, "its stride");
      break;
    case Kind::shuffle:
      fit(s.stride >= 1 && s.stride <= 64 && y.height == x.height * s.stride && y.width == x.width * s.stride &&
              x.channels == y.channels * s.stride * s.stride, "its pixels");
      break;
    case Kind::take:
      s.begin = nb::cast<int64_t>(item(d, "begin"));
      fit(x.pixels() == y.pixels() && s.begin >= 0 && s.begin <= x.channels - y.channels, "its channels");
      break;
    case Kind::join: {
      int64_t channels = 0;
      for (const int r : s.from) {
        const ImageShape& part = shapes[size_t(r)];
        fit(part.height == y.height && part.width == y.width, "its images");
        channels += part.channels;
      }
      fit(channels == y.channels, "its channels");
    }
  }
  written[size_t(s.to)] = true;
  return s;
}

std::shared_ptr<NativeImageNet> make(const std::vector<std::tuple<int64_t, int64_t, int64_t>>& registers,
                                     const nb::list& described, const std::vector<int>& kept, int given) {
  Shapes shapes;
  for (const auto& [height, width, channels] : registers) {
    check(height >= 1 && width >= 1 && channels >= 1 && height <= kMostPixels && width <= kMostPixels / height &&
              channels <= kMostChannels, "a register has no such size");
    shapes.push_back({height, width, channels});
  }
  check(described.size() > 0, "the net has no steps");
  check(given >= 1 && size_t(given) <= shapes.size(), "the net has fewer registers than come in");
  std::vector<bool> written(shapes.size(), false);
  std::fill_n(written.begin(), given, true);
  std::vector<ImageStep> steps;
  for (const nb::handle handle : described) steps.push_back(step_of(nb::cast<nb::dict>(handle), shapes, written, given));
  for (const int r : kept) check(r >= given && size_t(r) < shapes.size() && written[size_t(r)], "a kept register is never made");
  return std::make_shared<NativeImageNet>(ImageNet(std::move(shapes), std::move(steps), kept, given));
}

// The channels of a kept register: (count, pixels, channels).
nb::object copied(ImageNet& net, int r, int64_t count) {
  const ImageShape& shape = net.registers()[size_t(r)];
  float* out;
  nb::object result = array({size_t(count), size_t(shape.pixels()), size_t(shape.channels)}, &out);
  for (int64_t i = 0; i < count * shape.pixels(); ++i)
    std::copy_n(net.data(r) + i * shape.ld(), shape.channels, out + i * shape.channels);
  return result;
}

nb::list run(NativeImageNet& self, const std::vector<Rows>& given, const std::vector<int>& wanted, int threads) {
  ImageNet& net = self.net;
  check(given.size() == size_t(net.given()), "the net takes another number of arrays");
  const auto count = int64_t(given[0].shape(0));
  check(count >= 1 && count <= ImageNet::kMostImages, "a run takes 1 to 32 images");
  std::vector<const float*> rows;
  for (const Rows& x : given) {
    const ImageShape& shape = net.registers()[rows.size()];
    check(int64_t(x.shape(0)) == count && int64_t(x.shape(1)) == shape.pixels() && int64_t(x.shape(2)) == shape.channels,
          "the images have another size");
    rows.push_back(x.data());
  }
  for (const int r : wanted)
    check(r >= net.given() && size_t(r) < net.registers().size() && net.kept(r), "that register is not kept");
  nb::list results;
  std::unique_lock lock(self.busy, std::defer_lock);
  {
    const nb::gil_scoped_release release;
    lock.lock();
    net.run(std::move(rows), count, threads);
  }
  for (const int r : wanted) results.append(copied(net, r, count));
  return results;
}

void bind(nb::module_& m) {
  nb::class_<NativeImageNet>(m, "ImageNet").def("run", &run, "given"_a, "wanted"_a, "threads"_a = 0);
  m.def("make_image_net", &make, "registers"_a, "steps"_a, "kept"_a, "given"_a = 1);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
