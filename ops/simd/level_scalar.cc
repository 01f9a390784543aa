#define ONNXNORM_LEVEL scalar
#include "simd/vector_scalar.h"
// After its vectors.
#include "simd/level.h"

namespace onnxnorm::simd {

const Level& ScalarLevel() {
  static constexpr Level kLevel = scalar::MakeLevel("scalar");
  return kLevel;
}

const WideKernels& Wide() {
  using scalar::D;
  using scalar::MakeApplyKernels;
  static constexpr WideKernels kWide = {MakeApplyKernels<D, float>(), MakeApplyKernels<D, half_t>(),
                                        MakeApplyKernels<D, bfloat16_t>(),
                                        MakeApplyKernels<D, double>()};
  return kWide;
}

}  // namespace onnxnorm::simd
