// Timing of native products without Python between them: one weight kept in a cache level, or all layers in turn.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "bindings.h"
#include "kernels.h"
#include "linear.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

nb::object array(const std::vector<double>& values, size_t columns) {
  auto* data = new double[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, double>(data, {values.size() / columns, columns}, owner));
}

// Seconds of each product, (passes, weights): the weights in turn, every one with the first `in` columns of x.
// `forms`: activations are prepared anew in every pass, once for each run of weights of equal width, and that is
// timed too; else they are prepared beforehand.
nb::object time_matmul(const std::vector<NativeWeight>& weights,
                       const nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>& x,
                       int passes, int threads, bool forms) {
  if (weights.empty()) throw nb::value_error("no weight to multiply with");
  const auto rows = int64_t(x.shape(0)), columns = int64_t(x.shape(1));
  int64_t most = 1;
  for (const NativeWeight& w : weights) {
    if (w.weight->padded_in() > columns) throw nb::value_error("x is narrower than a weight");
    most = std::max(most, w.weight->out());
  }
  const float* from = x.data();
  std::vector<double> seconds;
  {
    const nb::gil_scoped_release release;
    std::vector<std::unique_ptr<Acts>> acts;  // one per weight; neighbours of equal width share
    std::vector<Acts*> of;
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t wide = weights[i].weight->padded_in();
      if (i == 0 || wide != weights[i - 1].weight->padded_in()) {
        acts.push_back(std::make_unique<Acts>());
        acts.back()->reset(from, columns, rows, wide);
      }
      of.push_back(acts.back().get());
      if (const FormSpec* form = weights[i].weight->form(rows)) of.back()->ensure(*form);
    }
    Buffer y(size_t(rows * most) * sizeof(float), Owner::scratch);
    LaneScratch scratch;
    Pool::Session session(threads);
    for (int pass = 0; pass < passes; ++pass)
      for (size_t i = 0; i < weights.size(); ++i) {
        const Clock::time_point start = Clock::now();
        if (forms && (i == 0 || of[i] != of[i - 1])) of[i]->reset(from, columns, rows, weights[i].weight->padded_in());
        const Product product{weights[i].weight.get(), y.as<float>(), weights[i].weight->out()};
        multiply(session, *of[i], &product, 1, false, scratch);
        seconds.push_back(seconds_since(start));
      }
  }
  return array(seconds, weights.size());
}

// Seconds of each preparation of x (its first `in` columns) for the weight, (passes, 1), on one thread.
nb::object time_form(const NativeWeight& weight,
                     const nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>& x,
                     int passes) {
  const Weight& w = *weight.weight;
  const FormSpec* form = w.form(int64_t(x.shape(0)));
  if (w.padded_in() > int64_t(x.shape(1))) throw nb::value_error("x is narrower than the weight");
  std::vector<double> seconds;
  Acts acts;
  for (int pass = 0; form && pass < passes; ++pass) {
    acts.reset(x.data(), int64_t(x.shape(1)), int64_t(x.shape(0)), w.padded_in());
    acts.reserve(*form);
    const Clock::time_point start = Clock::now();
    acts.build(*form, 0, acts.units(*form));
    seconds.push_back(seconds_since(start));
  }
  return array(seconds, 1);
}

// Seconds of each plain read of a weight's bytes, (passes, weights), in turn: the roof of `time_matmul`.
nb::object time_read(const std::vector<NativeWeight>& weights, int passes, int threads) {
  constexpr size_t piece = 24 << 10;
  if (weights.empty()) throw nb::value_error("no weight to read");
  for (const NativeWeight& w : weights)
    if (!w.weight->data()) throw nb::value_error("a weight does not lie in one piece");
  std::vector<double> seconds;
  {
    const nb::gil_scoped_release release;
    Pool::Session session(threads);
    for (int pass = 0; pass < passes; ++pass)
      for (const NativeWeight& w : weights) {
        const Clock::time_point start = Clock::now();
        const auto* data = static_cast<const char*>(w.weight->data());
        const size_t bytes = w.weight->bytes();
        session.run(int64_t((bytes + piece - 1) / piece), [&](int64_t task, int) {
          const size_t at = size_t(task) * piece;
          volatile uint64_t digest = kernels().read(data + at, std::min(piece, bytes - at));
          (void)digest;
        });
        seconds.push_back(seconds_since(start));
      }
  }
  return array(seconds, weights.size());
}

void bind(nb::module_& m) {
  m.def("time_matmul", &time_matmul, "weights"_a, "x"_a, "passes"_a, "threads"_a = 0, "forms"_a = false);
  m.def("time_form", &time_form, "weight"_a, "x"_a, "passes"_a);
  m.def("time_read", &time_read, "weights"_a, "passes"_a, "threads"_a = 0);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
