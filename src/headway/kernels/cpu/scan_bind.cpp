// The selective scan and its filter over arrays of torch or NumPy: tasks for the pool, and what is laid out once.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <vector>

#include "binding_tools.h"
#include "bindings.h"
#include "isa.h"
#include "pool.h"
#include "scan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {

const ScanKernels& scan_kernels() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return scan_avx512;
    case Isa::avx2: return scan_avx2;
    default: break;
  }
#endif
  return scan_portable;
}

using Rows = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;  // batch, tokens, channels, any distances of rows
using Made = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Array> void fits(const Array& x, const Rows& u, size_t channels, const char* what) {
  check(x.shape(0) == u.shape(0) && x.shape(1) == u.shape(1) && x.shape(2) == channels, what);
  check(x.shape(2) < 2 || x.stride(2) == 1, "channels of a token lie one behind the other");
}

// The first token in scan order, of image `image`, from channel `at`, and the distance to the next.
template <class Array> auto first(const Array& x, int64_t image, int64_t at, bool reverse) {
  return x.data() + image * x.stride(0) + (reverse ? (int64_t(x.shape(1)) - 1) * x.stride(1) : 0) + at;
}
template <class Array> int64_t row(const Array& x, bool reverse) { return reverse ? -x.stride(1) : x.stride(1); }

// Channels of a task: whole strips, a few tasks for each thread.
int64_t channels_of_task(int64_t channels, int64_t images, int lanes) {
  const int64_t strips = (channels + 15) / 16, tasks = std::max<int64_t>(1, 4 * int64_t(lanes) / images);
  return std::max<int64_t>(1, strips / tasks) * 16;
}

void scan(const Rows& u, const Rows& dt, const Matrix& a, const Rows& b, const Rows& c, const Vector& d,
          const Made& out, const std::optional<Rows>& added, const std::optional<Rows>& gate, bool softplus, bool reverse,
          int threads) {
  const size_t width = u.shape(2), state = a.shape(1);
  check(a.shape(0) == width && d.shape(0) == width, "a and d have a row for each channel");
  fits(u, u, width, "");
  fits(dt, u, width, "dt has the shape of u");
  fits(out, u, width, "the result has the shape of u");
  fits(b, u, state, "b is of the state");
  fits(c, u, state, "c is of the state");
  if (added) fits(*added, u, width, "what is added has the shape of u");
  if (gate) fits(*gate, u, width, "the gate has the shape of u");
  const auto images = int64_t(u.shape(0)), tokens = int64_t(u.shape(1)), channels = int64_t(width);
  const int64_t padded = (channels + 15) / 16 * 16, states = int64_t(state);
  const nb::gil_scoped_release release;
  std::vector<float> turned(size_t(states * padded));
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t k = 0; k < states; ++k)
      turned[size_t(k * padded + channel)] = a.data()[channel * states + k] * 1.44269504088896341f;
  std::vector<float> h(size_t(images * padded * states));
  Pool::Session session(threads);
  const int64_t step = channels_of_task(channels, images, session.lanes()), parts = (channels + step - 1) / step;
  session.run(images * parts, [&](int64_t task, int) {
    const int64_t image = task / parts, at = task % parts * step;
    ScanArgs args{};
    args.u = first(u, image, at, reverse), args.ldu = row(u, reverse);
    args.dt = first(dt, image, at, reverse), args.lddt = row(dt, reverse);
    args.b = first(b, image, 0, reverse), args.ldb = row(b, reverse);
    args.c = first(c, image, 0, reverse), args.ldc = row(c, reverse);
    if (added) args.added = first(*added, image, at, reverse), args.ldadded = row(*added, reverse);
    if (gate) args.gate = first(*gate, image, at, reverse), args.ldgate = row(*gate, reverse);
    args.y = first(out, image, at, reverse), args.ldy = row(out, reverse);
    args.a = turned.data() + at, args.lda = padded;
    args.d = d.data() + at;
    args.h = h.data() + (image * padded + at) * states;
    args.tokens = tokens, args.channels = std::min(step, channels - at), args.state = states;
    args.softplus = softplus;
    scan_kernels().scan(&args);
  });
}

void filter(const Rows& x, const Matrix& w, const std::optional<Vector>& bias, const Made& out, bool silu, bool reverse,
            int threads) {
  const size_t width = x.shape(2);
  check(w.shape(1) == width && w.shape(0) > 0, "weights are [taps][channels]");
  check(!bias || bias->shape(0) == width, "a bias for each channel");
  fits(x, x, width, "");
  fits(out, x, width, "the result has the shape of x");
  const auto images = int64_t(x.shape(0)), tokens = int64_t(x.shape(1));
  const int64_t block = 64, parts = (tokens + block - 1) / block;
  const nb::gil_scoped_release release;
  Pool::Session session(threads);
  session.run(images * parts, [&](int64_t task, int) {
    const int64_t image = task / parts, begin = task % parts * block;
    FilterArgs args{};
    args.ldx = row(x, reverse), args.ldy = row(out, reverse);
    args.x = first(x, image, 0, reverse) + begin * args.ldx;
    args.y = first(out, image, 0, reverse) + begin * args.ldy;
    args.w = w.data(), args.bias = bias ? bias->data() : nullptr;
    args.before = begin, args.tokens = std::min(block, tokens - begin);
    args.channels = int64_t(width), args.taps = int64_t(w.shape(0)), args.silu = silu;
    scan_kernels().filter(&args);
  });
}

void bind(nb::module_& m) {
  m.def("selective_scan", &scan, "u"_a, "dt"_a, "a"_a, "b"_a, "c"_a, "d"_a, "out"_a, "added"_a.none(), "gate"_a.none(),
        "softplus"_a, "reverse"_a, "threads"_a = 0);
  m.def("causal_filter", &filter, "x"_a, "w"_a, "bias"_a.none(), "out"_a, "silu"_a, "reverse"_a, "threads"_a = 0);
}
const Binding binding(bind);

}  // namespace
}  // namespace headway
