// Python's view of bipolar weights: pack_bipolar, and what the proof and the tests ask of the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <optional>
#include <string>

#include "binding_tools.h"
#include "bindings.h"
#include "bipolar_weight.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway::bipolar {
namespace {

template <class T, size_t N> using Array = nb::ndarray<const T, nb::numpy, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

const Kernels& named(const std::string& level) {
  const Kernels* found = nullptr;
  for (const Kernels* here : kernels_here())
    if (level.empty() || level == here->name) found = here;
  check(found, "no such kernels here; see bipolar_levels()");
  return *found;
}

// Planes (bits, out, ceil(in / 8)), scales and offsets (out, groups); T: float, or f16 as bits. `level`: the kernels by
// name (bipolar_levels), for tests; empty: the best.
template <class T>
NativeWeight pack_bipolar(const Array<uint8_t, 3>& planes, const Array<T, 2>& scales,
                          const std::optional<Array<T, 2>>& offsets, int64_t columns, int64_t group, int64_t act_bits,
                          int64_t act_group, int64_t rotate, bool clip, int64_t count_rows, const std::string& level) {
  const auto bits = int64_t(planes.shape(0)), out = int64_t(planes.shape(1));
  check(bits >= 1 && bits <= 8, "a weight has 1 to 8 planes");
  check(act_bits >= 1 && act_bits <= 8, "activations have 1 to 8 bits");
  check(out > 0 && columns > 0, "the weight is empty; give at least one row and one column");
  check(int64_t(planes.shape(2)) == (columns + 7) / 8, "a plane's row must have ceil(columns / 8) bytes");
  for (const int64_t g : {group, act_group})
    check(g >= 0 && g % kColumns == 0 && (g <= kSegmentBlocks * kColumns || g >= columns),
          "groups must be multiples of 32 up to 32768, or 0 for the row");
  check(rotate == 0 || (power_of_two(rotate) && rotate <= 4096), "rotate must be 0 or a power of two up to 4096");
  check(count_rows >= 0, "count_rows must not be negative");
  Stored stored{out, columns, group, int(bits), sizeof(T) == 2, planes.data(), scales.data(),
                offsets ? offsets->data() : nullptr, act_group, rotate, int(act_bits), clip};
  for (const auto* a : {&scales, offsets ? &*offsets : &scales})
    check(int64_t(a->shape(0)) == out && int64_t(a->shape(1)) == stored.groups(),
          "scales and offsets must be (rows, groups)");
  const Kernels& kernels = named(level);
  const nb::gil_scoped_release release;
  return {std::make_shared<BipolarWeight>(stored, count_rows, kernels)};
}

const BipolarWeight& bipolar_weight(const NativeWeight& weight) {
  const auto* w = dynamic_cast<const BipolarWeight*>(weight.weight.get());
  check(w, "not a bipolar weight");
  return *w;
}

nb::object integers(const NativeWeight& weight, const Array<float, 2>& x) {
  const BipolarWeight& w = bipolar_weight(weight);
  check(int64_t(x.shape(1)) == w.in() && x.shape(0) > 0, "x must have rows, and as many columns as the weight");
  int64_t* y;
  nb::object made = array({x.shape(0), size_t(w.out())}, &y);
  const nb::gil_scoped_release release;
  w.integers(x.data(), int64_t(x.shape(0)), y);
  return made;
}

// Bits per second of one core that xors, counts and adds registers: the best of `tries`.
double roof(const std::string& level, int tries) {
  using Clock = std::chrono::steady_clock;
  const Kernels& kernels = named(level);
  double best = 0;
  const nb::gil_scoped_release release;
  for (int i = 0; i < tries; ++i) {
    const Clock::time_point start = Clock::now();
    const int64_t bits = kernels.roof(20000);
    best = std::max(best, double(bits) / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void bind(nb::module_& m) {
  m.def("pack_bipolar", &pack_bipolar<float>, "planes"_a, "scales"_a, "offsets"_a.none(), "columns"_a, "group"_a,
        "act_bits"_a, "act_group"_a, "rotate"_a, "clip"_a, "count_rows"_a, "level"_a = "");
  m.def("pack_bipolar", &pack_bipolar<uint16_t>, "planes"_a, "scales"_a, "offsets"_a.none(), "columns"_a, "group"_a,
        "act_bits"_a, "act_group"_a, "rotate"_a, "clip"_a, "count_rows"_a, "level"_a = "");
  m.def("bipolar_levels", [] {
    nb::list names;
    for (const Kernels* kernels : kernels_here()) names.append(kernels->name);
    return names;
  });
  m.def("bipolar_level", [](const NativeWeight& weight) { return bipolar_weight(weight).kernels().name; }, "weight"_a);
  m.def("bipolar_integers", &integers, "weight"_a, "x"_a);
  m.def("bipolar_roof", &roof, "level"_a = "", "tries"_a = 50);
  m.def("bipolar_counts", [] {
    nb::dict d;
    d["counted"] = BipolarWeight::counted.load();
    d["recovered"] = BipolarWeight::recovered.load();
    return d;
  });
}

const Binding binding(bind);

}  // namespace
}  // namespace headway::bipolar
