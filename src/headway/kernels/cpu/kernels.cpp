#include "kernels.h"

#include "isa.h"

namespace headway {

const Kernels& kernels() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return kernels_avx512;
    case Isa::avx2: return kernels_avx2;
    default: break;
  }
#endif
  return kernels_portable;
}

}  // namespace headway
