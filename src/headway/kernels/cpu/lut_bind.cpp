// Python's view of bit-plane weights: pack_lut, and what the proof and the tests ask of the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>

#include "binding_tools.h"
#include "bindings.h"
#include "lut_weight.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway::lut {
namespace {

template <class T, size_t N> using Array = nb::ndarray<const T, nb::numpy, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

// Planes (bits, out, ceil(in / 8)), scales (1 or bits, out, groups), offsets (out, groups); T: float, or f16 as bits.
// `level`: the kernels by name (lut_levels), for tests; empty: the best.
template <class T>
NativeWeight pack_lut(const Array<uint8_t, 3>& planes, const Array<T, 3>& scales, const Array<T, 2>& offsets,
                      int64_t columns, int64_t group, bool uniform, int64_t segment, int64_t crossover,
                      const std::string& level) {
  const auto bits = int64_t(planes.shape(0)), out = int64_t(planes.shape(1));
  check(bits >= 1 && bits <= 4, "a weight has 1 to 4 planes");
  check(out > 0 && columns > 0, "the weight is empty; give at least one row and one column");
  check(int64_t(planes.shape(2)) == (columns + 7) / 8, "a plane's row must have ceil(columns / 8) bytes");
  check(group >= 4 && group % 4 == 0, "group must be a multiple of 4");
  check(segment == 32 || segment == 64, "segment must be 32 or 64");
  check(crossover >= 0, "crossover must not be negative");
  const Stored stored{out, columns, group, int(bits), uniform, sizeof(T) == 2, planes.data(), scales.data(),
                      offsets.data()};
  check(int64_t(scales.shape(0)) == stored.planes_apart() && int64_t(scales.shape(1)) == out &&
            int64_t(scales.shape(2)) == stored.groups(),
        "scales must be (1, or one per plane, rows, groups)");
  check(int64_t(offsets.shape(0)) == out && int64_t(offsets.shape(1)) == stored.groups(),
        "offsets must be (rows, groups)");
  const Kernels* kernels = nullptr;
  for (const Kernels* here : kernels_here())
    if (level.empty() || level == here->name) kernels = here;
  check(kernels, "no such kernels here; see lut_levels()");
  const nb::gil_scoped_release release;
  return {std::make_shared<LutWeight>(stored, segment, crossover, *kernels)};
}

const LutWeight& lut_weight(const NativeWeight& weight) {
  const auto* w = dynamic_cast<const LutWeight*>(weight.weight.get());
  check(w, "not a weight of bit planes");
  return *w;
}

nb::object matmul_float(const NativeWeight& weight, const Array<float, 2>& x) {
  const LutWeight& w = lut_weight(weight);
  check(int64_t(x.shape(1)) == w.in(), "x must have as many columns as the weight");
  float* y;
  nb::object made = array({x.shape(0), size_t(w.out())}, &y);
  const nb::gil_scoped_release release;
  w.matmul_float(x.data(), int64_t(x.shape(0)), y);
  return made;
}

void bind(nb::module_& m) {
  m.def("pack_lut", &pack_lut<float>, "planes"_a, "scales"_a, "offsets"_a, "columns"_a, "group"_a, "uniform"_a,
        "segment"_a, "crossover"_a, "level"_a = "");
  m.def("pack_lut", &pack_lut<uint16_t>, "planes"_a, "scales"_a, "offsets"_a, "columns"_a, "group"_a, "uniform"_a,
        "segment"_a, "crossover"_a, "level"_a = "");
  m.def("lut_levels", [] {
    nb::list names;
    for (const Kernels* kernels : kernels_here()) names.append(kernels->name);
    return names;
  });
  m.def("lut_matmul_float", &matmul_float, "weight"_a, "x"_a);
  m.def("lut_level", [](const NativeWeight& weight) { return lut_weight(weight).kernels().name; }, "weight"_a);
  m.def("lut_counts", [] {
    nb::dict d;
    d["looked_up"] = LutWeight::looked_up.load();
    d["dense"] = LutWeight::dense.load();
    return d;
  });
}

const Binding binding(bind);

}  // namespace
}  // namespace headway::lut
