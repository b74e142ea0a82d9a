// The extension module: what concerns no single part. Each part binds its own functions (bindings.h).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "arena.h"
#include "bindings.h"
#include "isa.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace headway {
namespace {
const Binding*& bindings() {
  static const Binding* first = nullptr;
  return first;
}

nb::dict use(const MemoryUse& memory) {
  nb::dict d;
  d["current"] = memory.current;
  d["peak"] = memory.peak;
  return d;
}
}  // namespace

Binding::Binding(Function f) : function(f), next(bindings()) { bindings() = this; }

}  // namespace headway

NB_MODULE(_cpu, m) {
  using namespace headway;
  m.def("isa", [] { return name_of(isa()); });
  m.def("levels", [] {
    nb::list names;
    for (Isa level : {Isa::portable, Isa::avx2, Isa::avx512})
      if (has(level)) names.append(name_of(level));
    return names;
  });
  m.def("set_isa", [](const std::string& name) {
    for (Isa level : {Isa::portable, Isa::avx2, Isa::avx512})
      if (name == name_of(level)) return set_isa(level);
    throw nb::value_error(("no instruction set '" + name + "'; use avx512, avx2 or portable").c_str());
  });
  m.def("features", [] {
    nb::list names;
    const Features& f = features();
    if (f.vbmi) names.append("vbmi");
    if (f.bf16) names.append("bf16");
    if (f.vpopcntdq) names.append("vpopcntdq");
    if (f.avx_vnni) names.append("avx_vnni");
    return names;
  });
  m.def("memory", [] {
    nb::dict d;
    d["weights"] = use(memory_use(Owner::weights));
    d["kv"] = use(memory_use(Owner::kv));
    d["scratch"] = use(memory_use(Owner::scratch));
    d["total"] = use(memory_total());
    return d;
  });
  m.def("reset_peaks", &reset_peaks);
  m.def("fail_allocation", &fail_allocation, "k"_a);
  for (const Binding* binding = bindings(); binding; binding = binding->next) binding->function(m);
}
