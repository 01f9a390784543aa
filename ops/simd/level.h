// Builds one level's table. A level_*.cc file defines ONNXNORM_LEVEL, includes its vector_*.h, then
// this.
//
// Whatever is compiled here for a newer instruction set must not be found by the linker for an
// older one: everything is in the level's own namespace and has internal linkage, and nothing
// inline of the C++ library is used.
#pragma once

// clang-format off
#include "simd/memory.h"
#include "simd/math.h"
#include "core/apply_core.h"
#include "core/statistics_core.h"
// clang-format on

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

template <typename V, typename T>
constexpr Kernels<T> MakeKernels() {
  return {RunMoments<V, T>, RunSquares<V, T>, ColumnMoments<V, T>, ColumnSquares<V, T>,
          MakeApplyKernels<V, T>()};
}

constexpr Level MakeLevel(const char* name) {
  return {name, MakeKernels<F, float>(), MakeKernels<F, half_t>(), MakeKernels<F, bfloat16_t>(),
          MakeKernels<D, double>()};
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
