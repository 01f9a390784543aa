#define ONNXNORM_LEVEL neon
#include "simd/vector_neon.h"
// After its vectors.
#include "simd/level.h"

namespace onnxnorm::simd {

const Level& NeonLevel() {
  static constexpr Level kLevel = neon::MakeLevel("neon");
  return kLevel;
}

}  // namespace onnxnorm::simd
