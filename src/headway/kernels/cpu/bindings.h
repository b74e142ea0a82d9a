// How a kernel file adds its functions to the extension module without touching module.cpp:
//   static void bind(nanobind::module_& m) { m.def("pack_mine", ...); }
//   static const headway::Binding binding(bind);
#pragma once
#include <nanobind/nanobind.h>

#include <memory>

#include "weight.h"

namespace headway {

struct Binding {
  using Function = void (*)(nanobind::module_&);
  explicit Binding(Function function);
  Function function;
  const Binding* next;
};

// A packed weight as Python sees it (class `NativeWeight`); returned by every pack_* function.
struct NativeWeight {
  std::shared_ptr<const Weight> weight;
};

}  // namespace headway
