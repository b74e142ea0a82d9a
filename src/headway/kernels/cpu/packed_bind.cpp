// Python's view of packed weights: pack_dense, pack_int, NativeWeight.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "binding_tools.h"
#include "bindings.h"
#include "linear.h"
#include "packed.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

template <class T> using Matrix = nb::ndarray<const T, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kPieceBytes = 1 << 20;  // of a matrix that is given in pieces

// Fills a weight with what `rows(begin, end)` gives, a piece at a time: no second copy of the whole matrix need exist.
template <class T, class W, class F> void fill(W& weight, const nb::callable& rows, F&& accept) {
  const int64_t step = std::max(kTile, kPieceBytes / int64_t(sizeof(T)) / weight.in() / kTile * kTile);
  for (int64_t begin = 0; begin < weight.out(); begin += step) {
    const int64_t count = std::min(step, weight.out() - begin);
    Matrix<T> piece;
    check(nb::try_cast(rows(begin, begin + count), piece), "a piece of the matrix has the wrong data type");
    check(int64_t(piece.shape(0)) == count && int64_t(piece.shape(1)) == weight.in(),
          "a piece of the matrix has the wrong shape");
    accept(piece.data(), count * weight.in());
    const nb::gil_scoped_release release;
    weight.fill(begin, count, piece.data());
  }
}

NativeWeight pack_int(const nb::callable& rows, int64_t out, int64_t in, const Matrix<float>& scales,
                      const std::optional<Matrix<float>>& minima, int64_t group, int bits, int zero) {
  check(out > 0 && in > 0, "codes are empty; give at least one row and one column");
  check(bits == 4 || bits == 8, "bits must be 4 or 8");
  check(zero >= 0 && zero < 1 << bits, "zero must be a code");
  check(group > 0 && (group == 16 || group % 32 == 0 || group >= in), "group must be 16, a multiple of 32, or a row");
  const int64_t groups = (in + group - 1) / group;
  check(int64_t(scales.shape(0)) == out && int64_t(scales.shape(1)) == groups, "scales must be (rows, groups)");
  if (minima)
    check(int64_t(minima->shape(0)) == out && int64_t(minima->shape(1)) == groups, "minima must be (rows, groups)");
  const auto weight =
      std::make_shared<IntWeight>(scales.data(), minima ? minima->data() : nullptr, out, in, group, bits, zero);
  fill<uint8_t>(*weight, rows, [bits](const uint8_t* codes, int64_t n) {
    uint8_t most = 0;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, codes[i]);
    check(bits == 8 || most <= 15, "a 4-bit code is above 15");
  });
  return {weight};
}

template <class T, Storage storage> NativeWeight pack_dense(const nb::callable& rows, int64_t out, int64_t in) {
  check(out > 0 && in > 0, "the matrix is empty; give at least one row and one column");
  const auto weight = std::make_shared<DenseWeight>(storage, out, in);
  fill<T>(*weight, rows, [](const T*, int64_t) {});
  return {weight};
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
  // rows(begin, end): that part of the matrix, C-contiguous; asked for in order, each row once.
  m.def("pack_int", &pack_int, "rows"_a, "out"_a, "columns"_a, "scales"_a, "minima"_a.none(), "group"_a, "bits"_a,
        "zero"_a);
  m.def("pack_f32", &pack_dense<float, Storage::f32>, "rows"_a, "out"_a, "columns"_a);
  // The bits of f16 or bf16 values, as uint16.
  m.def("pack_f16", &pack_dense<uint16_t, Storage::f16>, "rows"_a, "out"_a, "columns"_a);
  m.def("pack_bf16", &pack_dense<uint16_t, Storage::bf16>, "rows"_a, "out"_a, "columns"_a);

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
