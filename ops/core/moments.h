// Merging of moments, in double. Functions here have internal linkage, as in types.h: the SIMD
// levels share them.
#pragma once

#include <cstdint>

namespace onnxnorm {

/// Mean and sum of squared differences from it. The mean is mean + rest, where rest is what a
/// double cannot hold of it: if the mean is far larger than the spread, results in double need it.
/// The number of elements is known elsewhere.
struct Moments {
  double mean;
  double rest;
  double m2;
};

/// Moments of `count` elements.
struct CountedMoments {
  double count;
  Moments moments;
};

/// Moments of neighbouring columns, each part of them in a row of its own.
struct MomentColumns {
  double* mean;
  double* rest;
  double* m2;

  /// Those of the columns from `first` on.
  MomentColumns From(int64_t first) const { return {mean + first, rest + first, m2 + first}; }
};

/// Below this epsilon the statistics core must care for spreads whose squares underflow in float.
inline constexpr double kTinyEpsilon = 1e-30;

/// a + b, and in `rest` what rounding lost of it (Knuth): nothing, if the sum is not finite.
static inline double TwoSum(double a, double b, double* rest) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double lost = (a - (sum - b_part)) + (b - b_part);
  *rest = lost == lost ? lost : 0;
  return sum;
}

/// rest * factor for elements of type T. The square of doubles' spread may underflow, and the
/// factor be infinite: then 0, as there is no rest.
template <typename T>
static inline double RestTimes(double rest, double factor) {
  const double product = rest * factor;
  if constexpr (sizeof(T) != sizeof(double)) return product;
  return product - product == 0 ? product : 0;
}

/// Adds to `sum`, of `done` elements in each column, the moments of n more (Chan, Golub and LeVeque
/// 1979).
static inline void MergeColumns(const MomentColumns& part, double n, double done, int64_t columns,
                                const MomentColumns& sum) {
  const double share = n / (done + n), between = done * share;
  for (int64_t i = 0; i < columns; ++i) {
    const double delta = (part.mean[i] - sum.mean[i]) + (part.rest[i] - sum.rest[i]);
    double lost;
    sum.mean[i] = TwoSum(sum.mean[i], delta * share, &lost);
    sum.rest[i] += lost;
    sum.m2[i] += part.m2[i] + delta * delta * between;
  }
}

/// Adds the moments of n more elements (Chan, Golub and LeVeque 1979).
static inline void Merge(const Moments& part, double n, CountedMoments* sum) {
  if (sum->count == 0) {
    *sum = {n, part};
    return;
  }
  Moments& m = sum->moments;
  const double total = sum->count + n;
  const double delta = (part.mean - m.mean) + (part.rest - m.rest);
  double rest;
  m.mean = TwoSum(m.mean, delta * (n / total), &rest);
  m.rest += rest;
  m.m2 += part.m2 + delta * delta * (sum->count * (n / total));
  sum->count = total;
}

/// Moments of the union of `count` sets of `n` elements each.
static inline Moments MergeEqual(const Moments* parts, int64_t count, double n) {
  // Differences to the first mean, so that no digits are lost if all means are alike.
  const double shift = parts[0].mean;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += (parts[i].mean - shift) + parts[i].rest;
  const double offset = sum / static_cast<double>(count);
  double within = 0, between = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double delta = ((parts[i].mean - shift) + parts[i].rest) - offset;
    within += parts[i].m2;
    between += delta * delta;
  }
  Moments merged;
  merged.mean = TwoSum(shift, offset, &merged.rest);
  merged.m2 = within + n * between;
  return merged;
}

}  // namespace onnxnorm
