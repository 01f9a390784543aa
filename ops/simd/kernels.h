// What one SIMD level offers: the statistics core, the parameter core and the apply core, for every
// element type.
//
// Only plain structs and function pointers here: this header is seen by files compiled for
// different instruction sets.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/moments.h"
#include "core/types.h"

namespace onnxnorm::simd {

/// y = ending((x - mean) * scale + bias) in several layouts, computed in type C; one function for
/// each activation or ending. x and y may be the same memory.
template <typename T, typename C>
struct ApplyKernels {
  /// `planes` contiguous planes of `size` elements, one (mean, scale, bias, t) for each plane; t is
  /// read only by the endings that have it.
  using Planes = void (*)(const T* x, T* y, int64_t planes, int64_t size, const C* mean,
                          const C* scale, const C* bias, const C* t);
  /// `rows` contiguous rows of `columns` elements, one (mean, scale, bias, t) for each column.
  using Rows = void (*)(const T* x, T* y, int64_t rows, int64_t columns, const C* mean,
                        const C* scale, const C* bias, const C* t);
  /// One row: y[i] = activation(x[i] * factor * weight[i]).
  using ScaledRow = void (*)(const T* x, T* y, int64_t columns, C factor, const T* weight);
  /// `rows` rows, `stride` elements apart: y[r][i] = activation(x[r][i] * factor[i] * weight[r]).
  using ScaledColumns = void (*)(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                                 const C* factor, const T* weight);

  /// One row: y[i] = activation(((x[i] - mean) * factor + offset) * scale[i] + bias[i]).
  using NormalizedRow = void (*)(const T* x, T* y, int64_t columns, C mean, C factor, C offset,
                                 const T* scale, const T* bias);
  /// `rows` rows, `stride` elements apart: y[r][i] = activation(((x[r][i] - mean[i]) * factor[i] +
  /// offset[i]) * scale[r] + bias[r]).
  using NormalizedColumns = void (*)(const T* x, T* y, int64_t rows, int64_t stride,
                                     int64_t columns, const C* mean, const C* factor,
                                     const C* offset, const T* scale, const T* bias);

  Planes planes[kEndingCount];
  Rows rows[kEndingCount];
  ScaledRow scaled_row[kActivationCount];
  ScaledColumns scaled_columns[kActivationCount];
  NormalizedRow normalized_row[kActivationCount];
  NormalizedColumns normalized_columns[kActivationCount];
};

/// From statistics to what is applied. Parameters are worked out in double and rounded once to C;
/// what C cannot hold of a mean goes to the bias. The results say whether C has the range for them
/// and for x - mean, wherever the outcome is a number.
template <typename C>
struct ParameterKernels {
  /// out[i] = 1 / sqrt(variance[i] + epsilon).
  void (*inverse_sqrt)(const double* variance, double epsilon, int64_t n, double* out);
  /// Rounds n (mean, scale, bias).
  bool (*narrow)(const double* mean, const double* scale, const double* bias, int64_t n,
                 C* mean_out, C* scale_out, C* bias_out);
  /// The (mean, scale, bias) of the n channels of a group: scale and bias are the op's parameters.
  /// For numbers that C has the range for.
  void (*group)(double mean, double rest, double factor, const double* scale, const double* bias,
                int64_t n, C* mean_out, C* scale_out, C* bias_out);
  /// From the moments of n columns of `count` elements: (x - mean) * factor + offset has mean 0 and
  /// variance 1. Also in double, the mean being that of the moments.
  bool (*columns)(const MomentColumns& moments, double count, double epsilon, int64_t n,
                  double* wide_factor, double* wide_offset, C* mean, C* factor, C* offset);
};

/// The cores for element type T.
///
/// Statistics are exact to a few ulps of the spread, whatever the mean is. `tiny` asks for care
/// with spreads whose squares underflow, which matters only if epsilon is (nearly) zero.
template <typename T>
struct Kernels {
  /// Of n contiguous elements.
  Moments (*moments)(const T* x, int64_t n, bool tiny);
  /// Sum of squares of n contiguous elements.
  double (*squares)(const T* x, int64_t n, bool tiny);
  /// Of each of `segments` neighbouring runs of `size` elements.
  void (*segment_moments)(const T* x, int64_t segments, int64_t size, bool tiny, Moments* out);
  /// The same around 0 in place of the mean: m2 is the sum of squares.
  void (*segment_squares)(const T* x, int64_t segments, int64_t size, bool tiny, Moments* out);
  /// Of each column of `rows` rows that are `stride` elements apart.
  void (*column_moments)(const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                         MomentColumns out);
  /// Adds the sum of squares of each column to `out`.
  void (*column_squares)(const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                         double* out);
  /// out[i] = a[i] + b[i], rounded to T. `out` may be one of the two.
  void (*add)(const T* a, const T* b, T* out, int64_t n);
  /// y[i] = activation(x[i]).
  void (*activate[kActivationCount])(const T* x, T* y, int64_t n);
  ParameterKernels<typename ComputeOf<T>::type> parameters;
  ApplyKernels<T, typename ComputeOf<T>::type> apply;
};

/// One SIMD level.
struct Level {
  const char* name;
  Kernels<float> f32;
  Kernels<half_t> f16;
  Kernels<bfloat16_t> bf16;
  Kernels<double> f64;
};

/// Apply kernels that compute in double whatever T is, for values beyond the range of float. Scalar
/// level only.
struct WideKernels {
  ApplyKernels<float, double> f32;
  ApplyKernels<half_t, double> f16;
  ApplyKernels<bfloat16_t, double> bf16;
  ApplyKernels<double, double> f64;
};

// Defined by the level_*.cc files that are built for this architecture.
const Level& ScalarLevel();
const Level& Avx2Level();
const Level& Avx512Level();
const Level& NeonLevel();
const WideKernels& Wide();

}  // namespace onnxnorm::simd
