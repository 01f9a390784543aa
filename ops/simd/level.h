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
#include "core/parameter_core.h"
#include "core/statistics_core.h"
// clang-format on

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

template <typename V, typename T>
constexpr Kernels<T> MakeKernels() {
  using C = typename V::Element;
  return {RunMoments<V, T>,
          RunSquares<V, T>,
          SegmentMoments<V, T>,
          SegmentSquares<V, T>,
          ColumnMoments<V, T>,
          ColumnSquares<V, T>,
          Add<V, T>,
          {ActivateRun<V, T, Activation::kNone>, ActivateRun<V, T, Activation::kRelu>,
           ActivateRun<V, T, Activation::kSilu>, ActivateRun<V, T, Activation::kGelu>},
          MakeParameterKernels<C>(),
          MakeApplyKernels<V, T>()};
}

constexpr Level MakeLevel(const char* name) {
  return {name, MakeKernels<F, float>(), MakeKernels<F, half_t>(), MakeKernels<F, bfloat16_t>(),
          MakeKernels<D, double>()};
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
