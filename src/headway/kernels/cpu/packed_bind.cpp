// Python's view of packed weights: pack_dense, pack_int, NativeWeight.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <optional>
#include <string>

#include "bindings.h"
#include "linear.h"
#include "packed.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

template <class T> using Matrix = nb::ndarray<const T, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T> nb::object array(std::initializer_list<size_t> shape, T** data) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  auto* raw = new T[n];
  *data = raw;
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape, owner));
}

void check(bool ok, const char* message) {
  if (!ok) throw nb::value_error(message);
}

NativeWeight pack_int(const Matrix<uint8_t>& codes, const Matrix<float>& scales,
                      const std::optional<Matrix<float>>& minima, int64_t group, int bits, int zero) {
  const auto out = int64_t(codes.shape(0)), in = int64_t(codes.shape(1));
  check(out > 0 && in > 0, "codes are empty; give at least one row and one column");
  check(bits == 4 || bits == 8, "bits must be 4 or 8");
  check(zero >= 0 && zero < 1 << bits, "zero must be a code");
  check(group > 0 && (group == 16 || group % 32 == 0 || group >= in), "group must be 16, a multiple of 32, or a row");
  const int64_t groups = (in + group - 1) / group;
  check(int64_t(scales.shape(0)) == out && int64_t(scales.shape(1)) == groups, "scales must be (rows, groups)");
  if (minima)
    check(int64_t(minima->shape(0)) == out && int64_t(minima->shape(1)) == groups, "minima must be (rows, groups)");
  const uint8_t* data = codes.data();
  const float* low = minima ? minima->data() : nullptr;
  const nb::gil_scoped_release release;
  uint8_t most = 0;
  for (int64_t i = 0; i < out * in; ++i) most = data[i] > most ? data[i] : most;
  if (bits == 4 && most > 15) {
    const nb::gil_scoped_acquire acquire;
    throw nb::value_error("a 4-bit code is above 15");
  }
  return {std::make_shared<IntWeight>(data, scales.data(), low, out, in, group, bits, zero)};
}

template <class T> NativeWeight pack_dense(const Matrix<T>& values, Storage storage) {
  check(values.shape(0) > 0 && values.shape(1) > 0, "the matrix is empty; give at least one row and one column");
  const nb::gil_scoped_release release;
  return {std::make_shared<DenseWeight>(values.data(), storage, int64_t(values.shape(0)), int64_t(values.shape(1)))};
}

nb::object dequantize(const NativeWeight& self) {
  const Weight& w = *self.weight;
  float* to;
  nb::object result = array<float>({size_t(w.out()), size_t(w.in())}, &to);
  const nb::gil_scoped_release release;
  Pool::Session session;
  session.run(w.tiles(), [&](int64_t tile, int) {
    alignas(64) float panel[kBlock * 4 * kTile];
    for (int64_t c = 0; c < w.padded_in(); c += kBlock * 4) {
      const int64_t end = std::min(w.padded_in(), c + kBlock * 4);
      w.expand(tile, c, end, panel);
      for (int64_t r = 0; r < std::min(kTile, w.out() - tile * kTile); ++r)
        for (int64_t k = c; k < std::min(end, w.in()); ++k)
          to[(tile * kTile + r) * w.in() + k] = panel[(k - c) * kTile + r];
    }
  });
  return result;
}

nb::object matmul(const NativeWeight& self, const Matrix<float>& x, bool exact, int threads) {
  const Weight& w = *self.weight;
  const auto rows = int64_t(x.shape(0));
  check(int64_t(x.shape(1)) == w.in(), "x must have as many columns as the weight");
  float* y;
  nb::object result = array<float>({size_t(rows), size_t(w.out())}, &y);
  if (rows == 0) return result;
  const float* from = x.data();
  const nb::gil_scoped_release release;
  Buffer padded(size_t(rows * w.padded_in()) * sizeof(float), Owner::scratch);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(padded.as<float>() + r * w.padded_in(), from + r * w.in(), size_t(w.in()) * sizeof(float));
  Acts acts;
  acts.reset(padded.as<float>(), w.padded_in(), rows, w.padded_in());
  LaneScratch scratch;
  Pool::Session session(threads);
  const Product product{&w, y, w.out()};
  multiply(session, acts, &product, 1, exact, scratch);
  return result;
}

nb::object gather(const NativeWeight& self,
                  const nb::ndarray<const int32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>& ids) {
  const Weight& w = *self.weight;
  for (size_t i = 0; i < ids.shape(0); ++i)
    check(ids.data()[i] >= 0 && ids.data()[i] < w.out(), "a row index lies outside the weight");
  float* to;
  nb::object result = array<float>({ids.shape(0), size_t(w.in())}, &to);
  const nb::gil_scoped_release release;
  w.gather(ids.data(), int64_t(ids.shape(0)), to, w.in());
  return result;
}

nb::object unpack(const NativeWeight& self) {
  const auto* w = dynamic_cast<const IntWeight*>(self.weight.get());
  check(w, "only integer weights have codes");
  uint8_t* codes;
  float *scales, *minima = nullptr;
  const auto out = size_t(w->out()), groups = size_t(w->groups());
  nb::object a = array<uint8_t>({out, size_t(w->in())}, &codes), b = array<float>({out, groups}, &scales);
  nb::object c = w->layout().has_min ? array<float>({out, groups}, &minima) : nb::none();
  {
    const nb::gil_scoped_release release;
    w->unpack(codes, scales, minima);
  }
  return nb::make_tuple(a, b, c);
}

void bind(nb::module_& m) {
  nb::class_<NativeWeight>(m, "NativeWeight")
      .def_prop_ro("kind", [](const NativeWeight& w) { return w.weight->kind(); })
      .def_prop_ro("shape", [](const NativeWeight& w) { return nb::make_tuple(w.weight->out(), w.weight->in()); })
      .def_prop_ro("nbytes", [](const NativeWeight& w) { return w.weight->bytes(); })
      .def("dequantize", &dequantize)
      .def("matmul", &matmul, "x"_a, "exact"_a = false, "threads"_a = 0)
      .def("gather", &gather, "ids"_a)
      .def("unpack", &unpack);
  m.def("pack_int", &pack_int, "codes"_a, "scales"_a, "minima"_a.none(), "group"_a, "bits"_a, "zero"_a);
  m.def("pack_f32", [](const Matrix<float>& v) { return pack_dense(v, Storage::f32); }, "values"_a);
  // The bits of f16 or bf16 values, as uint16.
  m.def("pack_f16", [](const Matrix<uint16_t>& v) { return pack_dense(v, Storage::f16); }, "bits"_a);
  m.def("pack_bf16", [](const Matrix<uint16_t>& v) { return pack_dense(v, Storage::bf16); }, "bits"_a);

  m.def("threads", [] { return Pool::instance().threads(); });
  m.def("set_threads", [](int n) { Pool::instance().set_threads(n); }, "n"_a);
  m.def("pool_counts", [] {
    const Pool::Counts counts = Pool::instance().counts();
    nb::dict d;
    d["phases"] = counts.phases;
    d["stalls"] = counts.stalls;
    d["alone"] = counts.alone;
    return d;
  });
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
