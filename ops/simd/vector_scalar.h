// The level without intrinsics: four floats or two doubles in plain arrays, for any architecture.
// The fixed width lets a compiler use what the baseline offers, and keeps the order of additions
// the same everywhere.
#pragma once

#include "core/types.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

template <typename E, int N>
struct Pack {
  using Element = E;
  static constexpr int kWidth = N;
  E lane[N];
};

using F = Pack<float, 4>;
using D = Pack<double, 2>;

template <typename V>
inline V Set(typename V::Element value) {
  V r;
  for (int i = 0; i < V::kWidth; ++i) r.lane[i] = value;
  return r;
}

#define ONNXNORM_LANES(name, expression)                             \
  template <typename E, int N>                                       \
  inline Pack<E, N> name(const Pack<E, N>& a, const Pack<E, N>& b) { \
    Pack<E, N> r;                                                    \
    for (int i = 0; i < N; ++i) r.lane[i] = (expression);            \
    return r;                                                        \
  }
ONNXNORM_LANES(operator+, a.lane[i] + b.lane[i])
ONNXNORM_LANES(operator-, a.lane[i] - b.lane[i])
ONNXNORM_LANES(operator*, a.lane[i] * b.lane[i])
ONNXNORM_LANES(operator/, a.lane[i] / b.lane[i])
// Both return b if a or b is NaN.
ONNXNORM_LANES(Max, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i])
ONNXNORM_LANES(Min, a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i])
#undef ONNXNORM_LANES

template <typename E, int N>
inline Pack<E, N> Fma(const Pack<E, N>& a, const Pack<E, N>& b, const Pack<E, N>& c) {
  return a * b + c;
}

inline void Store(float* p, const F& v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline void Store(double* p, const D& v) { std::memcpy(p, v.lane, sizeof v.lane); }
template <typename T>
inline void Store(T* p, const F& v) {
  for (int i = 0; i < F::kWidth; ++i) FromFloat(v.lane[i], p + i);
}

template <typename T>
inline F LoadFloats(const T* p) {
  F r;
  for (int i = 0; i < F::kWidth; ++i) r.lane[i] = ToFloat(p[i]);
  return r;
}

inline D LoadDoubles(const double* p) {
  D r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}

inline void Widen(const F& v, D* out) {
  out[0] = {{v.lane[0], v.lane[1]}};
  out[1] = {{v.lane[2], v.lane[3]}};
}

template <typename E, int N>
inline E ReduceAdd(const Pack<E, N>& v) {
  E half[N / 2];
  for (int i = 0; i < N / 2; ++i) half[i] = v.lane[i] + v.lane[i + N / 2];
  E sum = half[0];
  for (int i = 1; i < N / 2; ++i) sum += half[i];
  return sum;
}

// 1 / v.
inline F Reciprocal(const F& v) { return Set<F>(1.0f) / v; }
inline F RoughReciprocal(const F& v) { return Reciprocal(v); }

// v where a < b does not hold (also if either is NaN), else 0.
inline F ZeroIfLess(const F& v, const F& a, const F& b) {
  F r;
  for (int i = 0; i < F::kWidth; ++i) r.lane[i] = a.lane[i] < b.lane[i] ? 0.0f : v.lane[i];
  return r;
}

// The float whose exponent is the last eight bits of each lane: 2^(bits - 127), and infinity and
// zero at the ends.
inline F ExponentFromBits(const F& v) {
  F r;
  for (int i = 0; i < F::kWidth; ++i) r.lane[i] = FloatOf(BitsOf(v.lane[i]) << 23);
  return r;
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
