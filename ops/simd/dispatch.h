// Picks kernels by element type. For code outside the levels only: these are inline functions with
// external linkage.
#pragma once

#include "simd/kernels.h"

namespace onnxnorm::simd {

/// The kernels of a level for element type T.
template <typename T>
const Kernels<T>& Get(const Level& level);
template <>
inline const Kernels<float>& Get<float>(const Level& level) {
  return level.f32;
}
template <>
inline const Kernels<half_t>& Get<half_t>(const Level& level) {
  return level.f16;
}
template <>
inline const Kernels<bfloat16_t>& Get<bfloat16_t>(const Level& level) {
  return level.bf16;
}
template <>
inline const Kernels<double>& Get<double>(const Level& level) {
  return level.f64;
}

/// The apply kernels that compute in double.
template <typename T>
const ApplyKernels<T, double>& GetWide();
template <>
inline const ApplyKernels<float, double>& GetWide<float>() {
  return Wide().f32;
}
template <>
inline const ApplyKernels<half_t, double>& GetWide<half_t>() {
  return Wide().f16;
}
template <>
inline const ApplyKernels<bfloat16_t, double>& GetWide<bfloat16_t>() {
  return Wide().bf16;
}
template <>
inline const ApplyKernels<double, double>& GetWide<double>() {
  return Wide().f64;
}

}  // namespace onnxnorm::simd
