#include "simd.h"

#include "../quantise_kernel.h"

HEADWAY_QUANTISE(quantise_avx512)
