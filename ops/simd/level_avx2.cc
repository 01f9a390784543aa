#define ONNXNORM_LEVEL avx2
#include "simd/vector_avx2.h"
// After its vectors.
#include "simd/level.h"

namespace onnxnorm::simd {

const Level& Avx2Level() {
  static constexpr Level kLevel = avx2::MakeLevel("avx2");
  return kLevel;
}

}  // namespace onnxnorm::simd
