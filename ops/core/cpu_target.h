// The choice of the SIMD level.
#pragma once

#include "simd/kernels.h"

namespace onnxnorm {

/// The level that ONNXNORM_CPU_TARGET names, or else the best one of this CPU. Throws if the name
/// is not known or the CPU lacks the level. The environment is read on each call.
const simd::Level& SelectLevel();

}  // namespace onnxnorm
