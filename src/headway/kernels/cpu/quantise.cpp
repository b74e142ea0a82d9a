// Python's view of the quantising kernels: matrices in, codes and grids out. Cuts W into panels, on all threads.
#include "quantise.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "arena.h"
#include "binding_tools.h"
#include "bindings.h"
#include "isa.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

template <class T, int N> using Array = nb::ndarray<const T, nb::numpy, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

const QuantiseKernels& table() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return quantise_avx512;
    case Isa::avx2: return quantise_avx2;
    default: break;
  }
#endif
  return quantise_portable;
}

// Rows [first, first + rows) of a row-major matrix, transposed; rows beyond the last are filled.
template <class T> void gather(const T* matrix, int64_t out, int64_t columns, int64_t first, int rows, T fill, T* panel,
                               const int32_t* order = nullptr) {
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t from = order ? order[c] : c;
    for (int r = 0; r < rows; ++r) panel[c * rows + r] = first + r < out ? matrix[(first + r) * columns + from] : fill;
  }
}

template <class T> void scatter(const T* panel, int64_t out, int64_t columns, int64_t first, int rows, T* matrix,
                                const int32_t* order = nullptr) {
  const int64_t n = std::min<int64_t>(rows, out - first);
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t to = order ? order[c] : c;
    for (int64_t r = 0; r < n; ++r) matrix[(first + r) * columns + to] = panel[c * rows + r];
  }
}

// Runs f(first row, floats, bytes) for each panel, with scratch of one lane.
template <class Function> void panels(int64_t out, int rows, size_t floats, size_t bytes, int threads, Function&& f) {
  Pool::Session session(threads);
  const int64_t tasks = (out + rows - 1) / rows;
  const size_t stride = (floats * 4 + bytes + 127) / 64 * 64;
  Buffer scratch(stride * size_t(session.lanes()), Owner::scratch);
  session.run(tasks, [&](int64_t task, int lane) {
    auto* at = scratch.as<uint8_t>() + stride * size_t(lane);
    f(task * rows, reinterpret_cast<float*>(at), at + floats * 4);
  });
}

nb::object fit(const Array<float, 2>& w, const Array<float, 1>& h, int64_t group, int levels, int candidates,
               float narrowest, int threads) {
  const auto out = int64_t(w.shape(0)), in = int64_t(w.shape(1));
  check(out > 0 && in > 0 && int64_t(h.shape(0)) == in, "h must have one weight per column");
  check(group > 0 && levels > 0 && levels < 256 && candidates > 0, "group, levels and candidates must be positive");
  const int64_t groups = (in + group - 1) / group;
  float *scale, *minimum;
  nb::object s = array<float>({size_t(out), size_t(groups)}, &scale), m = array<float>({size_t(out), size_t(groups)}, &minimum);
  {
    const nb::gil_scoped_release release;
    const QuantiseKernels& kernels = table();
    const int rows = kernels.rows;
    panels(out, rows, size_t(in + 2 * groups) * size_t(rows), 0, threads, [&](int64_t first, float* panel, uint8_t*) {
      gather(w.data(), out, in, first, rows, 0.0f, panel);
      float *ps = panel + in * rows, *pm = ps + groups * rows;
      const FitArgs args = {panel, h.data(), in, group, levels, candidates, narrowest, ps, pm};
      kernels.fit(&args);
      scatter(ps, out, groups, first, rows, scale);
      scatter(pm, out, groups, first, rows, minimum);
    });
  }
  return nb::make_tuple(s, m);
}

// The factor v of H in the order given, rows and columns in that order too.
nb::object factor(const Array<float, 2>& h, const Array<int32_t, 1>& order, float least) {
  const auto n = int64_t(h.shape(0));
  check(n > 0 && int64_t(h.shape(1)) == n && int64_t(order.shape(0)) == n, "h must be (in, in), order (in,)");
  check(least > 0, "least must be positive");
  for (int64_t c = 0; c < n; ++c) check(order.data()[c] >= 0 && order.data()[c] < n, "order must name every column");
  float* v;
  nb::object result = array<float>({size_t(n), size_t(n)}, &v);
  {
    const nb::gil_scoped_release release;
    const QuantiseKernels& kernels = table();
    const int rows = kernels.rows;
    const int64_t count = (n + rows - 1) / rows * n * rows;
    Buffer memory(size_t(count + kQuantiseBlock * (n + rows + kQuantiseBlock)) * 4, Owner::scratch);
    auto* panels_at = memory.as<float>();
    const int32_t* place = order.data();
    for (int64_t r = 0; r < n; ++r)
      for (int64_t c = 0; c <= r; ++c)
        panels_at[(c / rows * n + r) * rows + c % rows] = h.data()[place[n - 1 - r] * n + place[n - 1 - c]];
    const FactorArgs args = {panels_at, n, least, panels_at + count};
    kernels.factor(&args);
    for (int64_t i = 0; i < n; ++i) {
      std::fill(v + i * n, v + i * n + i, 0.0f);
      v[i * n + i] = 1.0f;
      for (int64_t j = i + 1; j < n; ++j) {
        const int64_t r = n - 1 - i, c = n - 1 - j;
        v[i * n + j] = panels_at[(c / rows * n + r) * rows + c % rows];
      }
    }
  }
  return result;
}

nb::object sweep(const Array<float, 2>& w, const Array<float, 2>& v, const Array<int32_t, 1>& order,
                 const std::optional<Array<float, 2>>& scale, const std::optional<Array<float, 2>>& minimum,
                 const std::optional<Array<float, 3>>& grid, int64_t group, int levels, int threads) {
  const auto out = int64_t(w.shape(0)), in = int64_t(w.shape(1));
  check(out > 0 && in > 0 && group > 0 && levels > 0 && levels < 256, "sizes must be positive");
  check(int64_t(v.shape(0)) == in && int64_t(v.shape(1)) == in, "v must be (in, in)");
  check(int64_t(order.shape(0)) == in, "order must name every column");
  const int64_t groups = (in + group - 1) / group;
  std::vector<int32_t> group_of(static_cast<size_t>(in));
  for (int64_t c = 0; c < in; ++c) {
    check(order.data()[c] >= 0 && order.data()[c] < in, "order must name every column");
    group_of[size_t(c)] = int32_t(order.data()[c] / group);
  }
  const auto fits = [&](const auto& a) { return int64_t(a->shape(0)) == out && int64_t(a->shape(1)) == groups; };
  if (grid)
    check(fits(grid) && int64_t(grid->shape(2)) == levels + 1, "grid must be (rows, groups, levels + 1)");
  else
    check(scale && minimum && fits(scale) && fits(minimum), "scale and minimum must be (rows, groups)");
  uint8_t* codes;
  nb::object result = array<uint8_t>({size_t(out), size_t(in)}, &codes);
  {
    const nb::gil_scoped_release release;
    const QuantiseKernels& kernels = table();
    const int rows = kernels.rows;
    const int64_t numbers = groups * (grid ? levels + 1 : 2);
    panels(out, rows, size_t(2 * in + numbers + kQuantiseBlock) * size_t(rows), size_t(in * rows), threads,
           [&](int64_t first, float* panel, uint8_t* panel_codes) {
             gather(w.data(), out, in, first, rows, 0.0f, panel, order.data());
             float* numbers_at = panel + in * rows;
             SweepArgs args = {};
             args.w = panel;
             args.v = v.data();
             args.group = group_of.data();
             args.in = in;
             args.levels = levels;
             args.codes = panel_codes;
             args.scratch = numbers_at + numbers * rows;
             if (grid) {
               gather(grid->data(), out, numbers, first, rows, 0.0f, numbers_at);
               args.grid = numbers_at;
             } else {
               gather(scale->data(), out, groups, first, rows, 1.0f, numbers_at);
               gather(minimum->data(), out, groups, first, rows, 0.0f, numbers_at + groups * rows);
               args.scale = numbers_at;
               args.minimum = numbers_at + groups * rows;
             }
             kernels.sweep(&args);
             scatter(panel_codes, out, in, first, rows, codes, order.data());
           });
  }
  return result;
}

nb::object refine(const Array<float, 2>& w, const Array<uint8_t, 2>& codes, const Array<float, 2>& h,
                  const Array<float, 2>& scale, const Array<float, 2>& minimum, int64_t group, int levels, int rounds,
                  bool half, int threads, bool centred) {
  const auto out = int64_t(w.shape(0)), in = int64_t(w.shape(1));
  check(out > 0 && in > 0 && group > 0 && levels > 0 && levels < 256 && rounds >= 0, "sizes must be positive");
  check(int64_t(h.shape(0)) == in && int64_t(h.shape(1)) == in, "h must be (in, in)");
  check(int64_t(codes.shape(0)) == out && int64_t(codes.shape(1)) == in, "codes must have the shape of w");
  const int64_t groups = (in + group - 1) / group;
  for (const auto* a : {&scale, &minimum})
    check(int64_t(a->shape(0)) == out && int64_t(a->shape(1)) == groups, "scale and minimum must be (rows, groups)");
  uint8_t* new_codes;
  float *new_scale, *new_minimum;
  nb::object q = array<uint8_t>({size_t(out), size_t(in)}, &new_codes);
  nb::object s = array<float>({size_t(out), size_t(groups)}, &new_scale);
  nb::object m = array<float>({size_t(out), size_t(groups)}, &new_minimum);
  {
    const nb::gil_scoped_release release;
    const QuantiseKernels& kernels = table();
    const int rows = kernels.rows;
    std::vector<float> sums(size_t(in * groups));
    for (int64_t j = 0; j < in; ++j) {
      check(h.data()[j * in + j] > 0, "the diagonal of h must be positive");
      for (int64_t c = 0; c < in; ++c) sums[size_t(j * groups + c / group)] += h.data()[j * in + c];
    }
    const size_t floats = size_t(in + 2 * groups) * size_t(rows) + refine_scratch(in, groups, rows);
    panels(out, rows, floats, size_t(in * rows), threads, [&](int64_t first, float* panel, uint8_t* panel_codes) {
      float *ps = panel + in * rows, *pm = ps + groups * rows;
      gather(w.data(), out, in, first, rows, 0.0f, panel);
      gather(codes.data(), out, in, first, rows, uint8_t(0), panel_codes);
      gather(scale.data(), out, groups, first, rows, 1.0f, ps);
      gather(minimum.data(), out, groups, first, rows, 0.0f, pm);
      const RefineArgs args = {panel, h.data(), sums.data(), in, group, groups, levels, rounds, half, centred, panel_codes,
                               ps, pm, pm + groups * rows};
      kernels.refine(&args);
      scatter(panel_codes, out, in, first, rows, new_codes);
      scatter(ps, out, groups, first, rows, new_scale);
      scatter(pm, out, groups, first, rows, new_minimum);
    });
  }
  return nb::make_tuple(q, s, m);
}

void bind(nb::module_& m) {
  m.def("quantise_fit", &fit, "w"_a, "h"_a, "group"_a, "levels"_a, "candidates"_a, "narrowest"_a, "threads"_a = 0,
        "Scale and minimum of every group of W (out, in), clip search weighted by h (in,): two (out, groups).");
  m.def("quantise_factor", &factor, "h"_a, "order"_a, "least"_a,
        "v (in, in), unit upper triangular: h = v d v^T, rows and columns in `order`; pivots are at least `least`.");
  m.def("quantise_sweep", &sweep, "w"_a, "v"_a, "order"_a, "scale"_a.none(), "minimum"_a.none(), "grid"_a.none(),
        "group"_a, "levels"_a, "threads"_a = 0, "Codes (out, in) of W with error feedback by v, columns taken in `order`.");
  m.def("quantise_refine", &refine, "w"_a, "codes"_a, "h"_a, "scale"_a, "minimum"_a, "group"_a, "levels"_a, "rounds"_a,
        "half"_a, "threads"_a = 0, "centred"_a = false,
        "Codes, scale and minimum improved in turn under (w - value) h (w - value)^T. centred: minimum stays at\n"
        "-scale levels / 2.");
}
const Binding binding(bind);

}  // namespace
}  // namespace headway
