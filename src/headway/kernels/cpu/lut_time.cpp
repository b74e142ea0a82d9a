// Timing of native products without Python between them: one weight kept in a cache level, or all layers in turn.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "binding_tools.h"
#include "bindings.h"
#include "kernels.h"
#include "linear.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Weights that one matrix of activations meets (q, k, v; gate, up), in the order of the model: the runtime multiplies
// with them in one go, and so does this.
using Siblings = std::vector<NativeWeight>;

// Seconds of each product, (passes, groups): the groups in turn, every one with the first `in` columns of x.
// `forms`: activations are prepared anew for every product, and that is timed too; else they are prepared beforehand.
nb::object time_matmul(const std::vector<Siblings>& groups,
                       const nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>& x,
                       int passes, int threads, bool forms) {
  constexpr size_t most_siblings = 8;
  const auto rows = int64_t(x.shape(0)), columns = int64_t(x.shape(1));
  int64_t most = 1;
  if (groups.empty()) throw nb::value_error("no weight to multiply with");
  for (const Siblings& group : groups) {
    if (group.empty() || group.size() > most_siblings) throw nb::value_error("a group has 1 to 8 weights");
    int64_t out = 0;
    for (const NativeWeight& w : group) {
      if (w.weight->in() != group[0].weight->in()) throw nb::value_error("siblings have the same width");
      if (w.weight->padded_in() > columns) throw nb::value_error("x is narrower than a weight");
      out += w.weight->out();
    }
    most = std::max(most, out);
  }
  const float* from = x.data();
  std::vector<double> seconds;
  {
    const nb::gil_scoped_release release;
    std::vector<std::unique_ptr<Acts>> acts;
    for (const Siblings& group : groups) {
      acts.push_back(std::make_unique<Acts>());
      acts.back()->reset(from, columns, rows, group[0].weight->padded_in());
      for (const NativeWeight& w : group)
        if (const FormSpec* form = w.weight->form(rows)) acts.back()->ensure(*form);
    }
    Buffer y(size_t(rows * most) * sizeof(float), Owner::scratch);
    LaneScratch scratch;
    Pool::Session session(threads);
    for (int pass = 0; pass < passes; ++pass)
      for (size_t g = 0; g < groups.size(); ++g) {
        const Clock::time_point start = Clock::now();
        if (forms) acts[g]->reset(from, columns, rows, groups[g][0].weight->padded_in());
        Product products[most_siblings];
        float* to = y.as<float>();
        for (size_t i = 0; i < groups[g].size(); ++i) {
          products[i] = {groups[g][i].weight.get(), to, groups[g][i].weight->out()};
          to += rows * groups[g][i].weight->out();
        }
        multiply(session, *acts[g], products, int(groups[g].size()), false, scratch);
        seconds.push_back(seconds_since(start));
      }
  }
  return array({seconds.size() / groups.size(), groups.size()}, seconds);
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
  return array({seconds.size(), 1}, seconds);
}

// Seconds of each plain read of a group's bytes, (passes, groups), in turn: the roof of `time_matmul`.
nb::object time_read(const std::vector<Siblings>& groups, int passes, int threads) {
  constexpr size_t piece = 24 << 10;
  struct Part {
    const char* data;
    size_t bytes;
  };
  std::vector<std::vector<Part>> parts;
  if (groups.empty()) throw nb::value_error("no weight to read");
  for (const Siblings& group : groups) {
    parts.emplace_back();
    for (const NativeWeight& w : group) {
      const auto* data = static_cast<const char*>(w.weight->data());
      if (!data) throw nb::value_error("a weight does not lie in one piece");
      for (size_t at = 0; at < w.weight->bytes(); at += piece)
        parts.back().push_back({data + at, std::min(piece, w.weight->bytes() - at)});
    }
  }
  std::vector<double> seconds;
  {
    const nb::gil_scoped_release release;
    Pool::Session session(threads);
    for (int pass = 0; pass < passes; ++pass)
      for (const std::vector<Part>& group : parts) {
        const Clock::time_point start = Clock::now();
        session.run(int64_t(group.size()), [&](int64_t task, int) {
          volatile uint64_t digest = kernels().read(group[size_t(task)].data, group[size_t(task)].bytes);
          (void)digest;
        });
        seconds.push_back(seconds_since(start));
      }
  }
  return array({seconds.size() / groups.size(), groups.size()}, seconds);
}

void bind(nb::module_& m) {
  m.def("time_matmul", &time_matmul, "groups"_a, "x"_a, "passes"_a, "threads"_a = 0, "forms"_a = false);
  m.def("time_form", &time_form, "weight"_a, "x"_a, "passes"_a);
  m.def("time_read", &time_read, "groups"_a, "passes"_a, "threads"_a = 0);
}

const Binding binding(bind);

}  // namespace
}  // namespace headway
