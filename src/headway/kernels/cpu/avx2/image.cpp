#include "simd.h"

#include "../image_kernel.h"

HEADWAY_IMAGE(image_avx2)
