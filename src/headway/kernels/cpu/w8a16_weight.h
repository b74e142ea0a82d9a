// An 8-bit weight whose activations are 16-bit (w8a16.h).
#pragma once
#include <memory>

#include "model.h"
#include "packed.h"

namespace headway {

// `weight` multiplied by 16-bit activations if the kernels take it; else `weight` itself.
WeightPtr with_wide_activations(WeightPtr weight);

}  // namespace headway
