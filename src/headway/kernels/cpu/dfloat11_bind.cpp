// Python's view of coded weights: count, encode, pack, unpack, and what the proof and the tests ask of the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "binding_tools.h"
#include "bindings.h"
#include "dfloat11_encode.h"
#include "dfloat11_weight.h"
#include "linear.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway::dfloat11 {
namespace {

template <class T, size_t N> using Array = nb::ndarray<const T, nb::numpy, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Lengths = nb::ndarray<const uint8_t, nb::numpy, nb::shape<256>, nb::c_contig, nb::device::cpu>;

// ValueError(block, rule): the stream is damaged there.
[[noreturn]] void refuse(int64_t block, const char* rule) {
  PyErr_SetObject(PyExc_ValueError, nb::make_tuple(block, rule).ptr());
  throw nb::python_error();
}

template <class T> nb::object whole(const std::vector<T>& values) { return array({values.size()}, values); }

struct Book {
  uint8_t lengths[256];
  explicit Book(const Lengths& from) { std::copy_n(from.data(), 256, lengths); }
};

nb::object count(const Array<uint16_t, 2>& values) {
  std::vector<uint64_t> counts(256);
  {
    const nb::gil_scoped_release release;
    uint64_t found[256] = {};
    count_exponents(values.data(), int64_t(values.size()), found);
    counts.assign(found, found + 256);
  }
  return whole(counts);
}

// -> code, sign_mantissa, gaps, positions
nb::object encoded(const Array<uint16_t, 2>& values, const Lengths& lengths) {
  check(values.size() > 0, "the matrix is empty; give at least one row and one column");
  check(values.size() < uint64_t(1) << 32, "a matrix has fewer than 2^32 weights");
  const Book book(lengths);
  Encoded made;
  {
    const nb::gil_scoped_release release;
    tables_of(book.lengths);  // refuses what is no prefix code
    made = encode(values.data(), int64_t(values.shape(0)), int64_t(values.shape(1)), book.lengths);
  }
  return nb::make_tuple(whole(made.code), whole(made.sign_mantissa), whole(made.gaps), whole(made.positions));
}

NativeWeight pack(const Array<uint8_t, 1>& code, const Array<uint8_t, 1>& sign_mantissa, const Array<uint8_t, 1>& gaps,
                  const Array<uint32_t, 1>& positions, const Lengths& lengths, int64_t out, int64_t in) {
  check(out > 0 && in > 0 && out < int64_t(1) << 32 && in < int64_t(1) << 32 && out * in < int64_t(1) << 32,
        "the matrix is empty, or has 2^32 weights or more");
  Stored s{out, in, code.data(), sign_mantissa.data(), gaps.data(), positions.data(), int64_t(code.size()),
           int64_t(gaps.size()), int64_t(positions.size()) - 1};
  check(s.code_bytes > 0, "there is no code");
  check(int64_t(sign_mantissa.size()) == s.weights(), "there must be one byte of sign and mantissa per weight");
  check(s.gap_bytes == (s.chunks() * 5 + 7) / 8, "there must be one gap per 8 bytes of code");
  check(s.blocks == (s.code_bytes + kBlockBytes - 1) / kBlockBytes, "there must be one position per block, and one more");
  if (s.positions[0] != 0) refuse(0, "its positions do not begin at 0");
  for (int64_t b = 0; b < s.blocks; ++b)
    if (s.positions[b + 1] < s.positions[b]) refuse(b, "its positions fall");
  if (int64_t(s.positions[s.blocks]) != s.weights()) refuse(s.blocks - 1, "its positions do not end at the number of weights");
  const Book book(lengths);
  try {
    const nb::gil_scoped_release release;
    return {std::make_shared<Dfloat11Weight>(s, tables_of(book.lengths))};
  } catch (const Damaged& damaged) {
    refuse(damaged.block, damaged.rule);
  }
}

const Dfloat11Weight& coded(const NativeWeight& weight) {
  const auto* w = dynamic_cast<const Dfloat11Weight*>(weight.weight.get());
  check(w, "not a coded weight");
  return *w;
}

// The bits of the matrix, (out, in); with the tables of the format one symbol at a time.
nb::object unpack(const NativeWeight& weight, const std::optional<Array<uint8_t, 2>>& luts) {
  const Dfloat11Weight& w = coded(weight);
  check(!luts || (luts->shape(0) >= 2 && luts->shape(1) == 256), "tables are rows of 256");
  uint16_t* data;
  nb::object made = array({size_t(w.out()), size_t(w.in())}, &data);
  const nb::gil_scoped_release release;
  if (luts) w.unpack_plainly(luts->data(), int64_t(luts->shape(0)), data);
  else w.unpack(data);
  return made;
}

// The code, and sign and mantissa, where the weight keeps them: views that hold on to it.
nb::object views(nb::handle_t<NativeWeight> weight) {
  const Dfloat11Weight& w = coded(*nb::inst_ptr<NativeWeight>(weight));
  const auto view = [&](const uint8_t* data, int64_t n) {
    return nb::cast(nb::ndarray<nb::numpy, const uint8_t>(data, {size_t(n)}, weight));
  };
  return nb::make_tuple(view(w.code(), w.code_bytes()), view(w.sign_mantissa(0), w.out() * w.in()));
}

// Seconds of each group of weights, (passes, groups): the groups in turn, every tile expanded into a buffer of its
// thread. `luts`: tables of the format, (rows, 256) per group, for decoding one symbol at a time instead; none: the
// kernel.
nb::object time_expand(const std::vector<std::vector<NativeWeight>>& groups, int passes, int threads,
                       const std::vector<Array<uint8_t, 2>>& luts) {
  using Clock = std::chrono::steady_clock;
  for (const auto& table : luts) check(table.shape(0) >= 2 && table.shape(1) == 256, "tables are rows of 256");
  check(!groups.empty() && (luts.empty() || luts.size() == groups.size()), "give weights, and tables for all or none");
  struct Task {
    const Dfloat11Weight* weight;
    int64_t tile, n;
  };
  std::vector<std::vector<Task>> tasks;
  size_t need = 64;
  for (const std::vector<NativeWeight>& group : groups) {
    tasks.emplace_back();
    for (const NativeWeight& weight : group) {
      const Dfloat11Weight& w = coded(weight);
      need = std::max(need, w.scratch_bytes(1));
      for (int64_t tile = 0; tile < w.tiles(); tile += kChains)
        tasks.back().push_back({&w, tile, std::min<int64_t>(kChains, w.tiles() - tile)});
    }
  }
  std::vector<double> seconds;
  {
    const nb::gil_scoped_release release;
    Pool::Session session(threads);
    LaneScratch scratch;
    scratch.reserve(session.lanes(), need);
    for (int pass = 0; pass < passes; ++pass)
      for (size_t g = 0; g < groups.size(); ++g) {
        const Clock::time_point start = Clock::now();
        session.run(int64_t(tasks[g].size()), [&](int64_t at, int lane) {
          const Task& task = tasks[g][size_t(at)];
          if (luts.empty()) return task.weight->expand_tiles(task.tile, task.n, scratch.at(lane));
          for (int64_t i = 0; i < task.n; ++i)
            task.weight->expand_plainly(task.tile + i, luts[g].data(), int64_t(luts[g].shape(0)),
                                        static_cast<uint16_t*>(scratch.at(lane)));
        });
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
  }
  return array({size_t(passes), groups.size()}, seconds);
}

void bind(nb::module_& m) {
  m.def("dfloat11_count", &count, "values"_a);
  m.def("dfloat11_encode", &encoded, "values"_a, "lengths"_a);
  m.def("pack_dfloat11", &pack, "code"_a, "sign_mantissa"_a, "gaps"_a, "positions"_a, "lengths"_a, "out"_a, "columns"_a);
  m.def("dfloat11_unpack", &unpack, "weight"_a, "luts"_a = nb::none());
  m.def("dfloat11_views", &views, "weight"_a);
  m.def("dfloat11_time", &time_expand, "groups"_a, "passes"_a, "threads"_a, "luts"_a);
  m.def("dfloat11_level", [] { return level().name; });
  m.def("dfloat11_expanded", [] { return Dfloat11Weight::expanded.load(); });
}

const Binding binding(bind);

}  // namespace
}  // namespace headway::dfloat11
