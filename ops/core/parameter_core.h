// The parameter core that every norm shares: from statistics in double to the numbers that the
// apply core reads.
//
// Included by the level_*.cc files only, once for each SIMD level. Plain loops without branches,
// which compilers vectorize for the level.
#pragma once

#include <math.h>

#include "simd/kernels.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

constexpr double kInfinity = HUGE_VAL;
/// Beyond these float loses x - mean, or the product with a factor.
constexpr double kLargeMean = 1e30, kLargeFactor = 1e37, kSmallFactor = 1.17549435082228751e-38;

inline double Magnitude(double value) { return value < 0 ? -value : value; }

/// 1 if the mean is a number too large for float's x - mean.
template <typename C>
inline int MeanMisfit(double mean) {
  const double size = Magnitude(mean);
  return sizeof(C) == sizeof(double) ? 0 : (size > kLargeMean) & (size < kInfinity);
}

/// 1 if the factor is a number, not 0, that float cannot hold well.
template <typename C>
inline int FactorMisfit(double factor) {
  const double size = Magnitude(factor);
  return sizeof(C) == sizeof(double)
             ? 0
             : ((size > kLargeFactor) & (size < kInfinity)) | ((size < kSmallFactor) & (size > 0));
}

/// What rounding a mean to C takes off the result.
template <typename C>
inline double Lost(C rounded, double mean, double factor) {
  const double lost = (static_cast<double>(rounded) - mean) * factor;
  return lost == lost ? lost : 0;
}

inline void InverseSqrt(const double* variance, double epsilon, int64_t n, double* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = 1 / ::sqrt(variance[i] + epsilon);
}

template <typename C>
bool NarrowParameters(const double* mean, const double* scale, const double* bias, int64_t n,
                      C* mean_out, C* scale_out, C* bias_out) {
  int64_t misfits = 0;
  for (int64_t i = 0; i < n; ++i) misfits += MeanMisfit<C>(mean[i]) + FactorMisfit<C>(scale[i]);
  for (int64_t i = 0; i < n; ++i) {
    const C rounded = static_cast<C>(mean[i]);
    mean_out[i] = rounded;
    scale_out[i] = static_cast<C>(scale[i]);
    bias_out[i] = static_cast<C>(bias[i] + Lost(rounded, mean[i], scale[i]));
  }
  return misfits == 0;
}

template <typename C>
void GroupParameters(double mean, double rest, double factor, const double* __restrict scale,
                     const double* __restrict bias, int64_t n, C* __restrict mean_out,
                     C* __restrict scale_out, C* __restrict bias_out) {
  const C rounded = static_cast<C>(mean);
  const double lost = static_cast<double>(rounded) - mean;
  const double shift = (lost == lost ? lost : 0) - rest;
  for (int64_t i = 0; i < n; ++i) {
    const double a = factor * scale[i];
    mean_out[i] = rounded;
    scale_out[i] = static_cast<C>(a);
    bias_out[i] = static_cast<C>(bias[i] + a * shift);
  }
}

/// ColumnParameters of memory that does not overlap.
template <typename C>
bool ApartColumnParameters(const double* __restrict from_mean, const double* __restrict from_rest,
                           const double* __restrict from_m2, double inverse, double epsilon,
                           int64_t n, double* __restrict wide_factor,
                           double* __restrict wide_offset, C* __restrict mean, C* __restrict factor,
                           C* __restrict offset) {
  int64_t misfits = 0;
  for (int64_t i = 0; i < n; ++i) {
    wide_factor[i] = 1 / ::sqrt(from_m2[i] * inverse + epsilon);
    wide_offset[i] = -RestTimes<C>(from_rest[i], wide_factor[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    misfits += MeanMisfit<C>(from_mean[i]) + FactorMisfit<C>(wide_factor[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const C rounded = static_cast<C>(from_mean[i]);
    mean[i] = rounded;
    factor[i] = static_cast<C>(wide_factor[i]);
    offset[i] = static_cast<C>(wide_offset[i] + Lost(rounded, from_mean[i], wide_factor[i]));
  }
  return misfits == 0;
}

template <typename C>
bool ColumnParameters(const MomentColumns& moments, double count, double epsilon, int64_t n,
                      double* wide_factor, double* wide_offset, C* mean, C* factor, C* offset) {
  return ApartColumnParameters(moments.mean, moments.rest, moments.m2, 1 / count, epsilon, n,
                               wide_factor, wide_offset, mean, factor, offset);
}

template <typename C>
constexpr ParameterKernels<C> MakeParameterKernels() {
  return {InverseSqrt, NarrowParameters<C>, GroupParameters<C>, ColumnParameters<C>};
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
