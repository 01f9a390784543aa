#define ONNXNORM_LEVEL avx512
#include "simd/vector_avx512.h"
// After its vectors.
#include "simd/level.h"

namespace onnxnorm::simd {

const Level& Avx512Level() {
  static constexpr Level kLevel = avx512::MakeLevel("avx512");
  return kLevel;
}

}  // namespace onnxnorm::simd
