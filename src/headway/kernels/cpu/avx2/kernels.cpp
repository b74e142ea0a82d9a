#include "simd.h"

#include "../table_kernel.h"

HEADWAY_TABLE(kernels_avx2)
