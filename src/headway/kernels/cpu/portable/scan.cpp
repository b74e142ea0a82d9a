#include "simd.h"

#include "../scan_kernel.h"

HEADWAY_SCAN(scan_portable)
