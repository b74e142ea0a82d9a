// What logits say of the tokens that came: log-probabilities, and two models side by side. Rows go to the pool.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

#include "binding_tools.h"
#include "bindings.h"
#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

using Logits = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Targets = nb::ndarray<const int64_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(const Logits& logits, const Targets& targets) {
  if (logits.shape(0) != targets.shape(0)) throw nb::value_error("one target for each row of logits");
  for (size_t i = 0; i < targets.shape(0); ++i)
    if (targets.data()[i] < 0 || size_t(targets.data()[i]) >= logits.shape(1))
      throw nb::value_error("a target lies outside the vocabulary");
}

nb::object log_softmax_at(const Logits& logits, const Targets& targets, int threads) {
  check(logits, targets);
  const auto rows = int64_t(logits.shape(0)), n = int64_t(logits.shape(1));
  double* out;
  nb::object made = array({size_t(rows)}, &out);
  const float* x = logits.data();
  const int64_t* at = targets.data();
  const nb::gil_scoped_release release;
  Pool::Session session(threads);
  session.run(rows, [&](int64_t row, int) {
    float top;
    const float* own = x + row * n;
    out[row] = double(own[at[row]]) - kernels().log_sum_exp(own, n, &top);
  });
  return made;
}

nb::tuple compare_logits(const Logits& original, const Logits& candidate, const Targets& targets, int threads) {
  check(original, targets);
  check(candidate, targets);
  const auto rows = int64_t(original.shape(0)), n = int64_t(original.shape(1));
  if (int64_t(candidate.shape(1)) != n) throw nb::value_error("logits of two vocabularies");
  double *ours, *theirs, *kl;
  bool* agree;
  nb::tuple made = nb::make_tuple(array({size_t(rows)}, &ours), array({size_t(rows)}, &theirs), array({size_t(rows)}, &kl),
                                  array({size_t(rows)}, &agree));
  const float *x = original.data(), *y = candidate.data();
  const int64_t* at = targets.data();
  const nb::gil_scoped_release release;
  Pool::Session session(threads);
  session.run(rows, [&](int64_t row, int) {
    const Kernels& k = kernels();
    const float *a = x + row * n, *b = y + row * n;
    float top_a, top_b;
    const double norm_a = k.log_sum_exp(a, n, &top_a), norm_b = k.log_sum_exp(b, n, &top_b);
    ours[row] = double(a[at[row]]) - norm_a;
    theirs[row] = double(b[at[row]]) - norm_b;
    kl[row] = k.divergence(a, norm_a, b, norm_b, n);
    const int64_t most = k.argmax(a, n);
    agree[row] = most >= 0 && most == k.argmax(b, n);
  });
  return made;
}

void bind(nb::module_& m) {
  m.def("log_softmax_at", &log_softmax_at, "logits"_a, "targets"_a, "threads"_a = 0);
  m.def("compare_logits", &compare_logits, "original"_a, "candidate"_a, "targets"_a, "threads"_a = 0);
}
const Binding binding(bind);

}  // namespace
}  // namespace headway
