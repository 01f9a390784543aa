// Activations on vectors.
#pragma once

#include <math.h>

#include "core/activation.h"
#include "simd/kernels.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

/// How exact a result has to be: to about one ulp of a float, or well below the rounding to a type
/// of eleven bits or fewer.
enum class Precision { kFloat, kHalf };

/// e^x to about one ulp (5e-6 for a half): x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial
/// in r. Above 88.3 it is infinity, below -87.7 zero; NaN stays NaN.
template <Precision kPrecision>
inline F Exp(F x) {
  // 1.5 * 2^23 rounds what is added to it to an integer; 127 more, and its last bits are 2^n's
  // exponent: 255 (infinity) for n = 128, and 0 (zero) for n = -127.
  const F magic = Set<F>(12582912.0f + 127.0f);
  x = Max(Set<F>(-88.0f), Min(Set<F>(88.7f), x));
  const F shifted = Fma(x, Set<F>(1.44269504088896341f), magic);
  // One float for ln 2 is off by 2e-9 n: less than half an ulp wherever the result matters
  // beside 1.
  const F r = Fma(shifted - magic, Set<F>(-0.693147180559945309f), x);
  // Minimax fits of (e^r - 1 - r) / r^2, relative error of e^r 3e-9 (5e-6 for a half).
  F p = Set<F>(0x1.6a23cep-10f);
  if constexpr (kPrecision == Precision::kHalf) {
    p = Set<F>(0.0412777476f);
    p = Fma(p, r, Set<F>(0.167535141f));
    p = Fma(p, r, Set<F>(0.500051141f));
  } else {
    p = Fma(p, r, Set<F>(0x1.123a20p-7f));
    p = Fma(p, r, Set<F>(0x1.5558f2p-5f));
    p = Fma(p, r, Set<F>(0x1.555492p-3f));
    p = Fma(p, r, Set<F>(0x1.fffffcp-2f));
  }
  p = Fma(p * r, r, r) + Set<F>(1.0f);
  return p * ExponentFromBits(shifted);
}

/// 2^z for z <= 0, relative error 3e-9 (3e-6 for a half) beside that of z; about 2^-126 below -126.
/// NaN stays NaN.
template <Precision kPrecision>
inline F ExpOfTwo(F z) {
  const F magic = Set<F>(12582912.0f + 127.0f);  // as in Exp
  z = Max(Set<F>(-126.0f), z);
  const F shifted = z + magic;
  const F f = z - (shifted - magic);
  F p = Set<F>(0.000153210728f);
  if constexpr (kPrecision == Precision::kHalf) {
    p = Set<F>(0.00958285294f);
    p = Fma(p, f, Set<F>(0.0559064262f));
    p = Fma(p, f, Set<F>(0.240240991f));
    p = Fma(p, f, Set<F>(0.693124175f));
  } else {
    p = Fma(p, f, Set<F>(0.00133902185f));
    p = Fma(p, f, Set<F>(0.00961852668f));
    p = Fma(p, f, Set<F>(0.055503624f));
    p = Fma(p, f, Set<F>(0.240226478f));
    p = Fma(p, f, Set<F>(0.693147180559945309f));
  }
  p = Fma(p, f, Set<F>(1.0f));
  return p * ExponentFromBits(shifted);
}

/// 1 / v, for v from 1 to 2^126.
template <Precision kPrecision>
inline F Inverse(F v) {
  return kPrecision == Precision::kHalf ? RoughReciprocal(v) : Reciprocal(v);
}

/// 1 / (1 + e^-x), and 0 below -87, where e^-x leaves the range; NaN stays NaN.
template <Precision kPrecision = Precision::kFloat>
inline F Sigmoid(F x) {
  const F lowest = Set<F>(-87.0f);
  const F minus = Set<F>(0.0f) - Max(lowest, x);
  return ZeroIfLess(Inverse<kPrecision>(Set<F>(1.0f) + Exp<kPrecision>(minus)), x, lowest);
}

/// x / (1 + e^-x).
template <Precision kPrecision>
inline F Silu(F x) {
  return x * Sigmoid<kPrecision>(x);
}

/// x Phi(x) = max(x, 0) - |x| q(|x|), where q(t) = erfc(t / sqrt 2) / 2 is the tail of the normal
/// distribution: no cancellation for negative x. q(t) = e^(-t^2/2) u P(u) with u = 1 / (1 + 0.265
/// t); P is a minimax fit on [0, 14.5], relative error 1.4e-8 (3.4e-5 for a half); beyond that q
/// underflows.
template <Precision kPrecision>
inline F Gelu(F x) {
  const F minus = Set<F>(0.0f) - x;
  // Infinity must not meet a zero for x = +inf (which gives +inf), and must for x = -inf (NaN, as
  // in PyTorch).
  const F t = Max(minus, Min(Set<F>(16.0f), x));
  const F u = Inverse<kPrecision>(Fma(Set<F>(0.265f), t, Set<F>(1.0f)));
  F p = Set<F>(0.030624527484178543f);
  if constexpr (kPrecision == Precision::kHalf) {
    p = Set<F>(-0.0410790555f);
    p = Fma(p, u, Set<F>(0.261262298f));
    p = Fma(p, u, Set<F>(-0.0873047933f));
    p = Fma(p, u, Set<F>(0.168498546f));
    p = Fma(p, u, Set<F>(0.0918765366f));
    p = Fma(p, u, Set<F>(0.106763244f));
  } else {
    p = Fma(p, u, Set<F>(-0.14330092072486877f));
    p = Fma(p, u, Set<F>(0.21595095098018646f));
    p = Fma(p, u, Set<F>(-0.11428702622652054f));
    p = Fma(p, u, Set<F>(0.13655529916286469f));
    p = Fma(p, u, Set<F>(0.060894884169101715f));
    p = Fma(p, u, Set<F>(0.10255511850118637f));
    p = Fma(p, u, Set<F>(0.10526677221059799f));
    p = Fma(p, u, Set<F>(0.10574039071798325f));
  }
  // e^(-t^2/2) as a power of two. Where it no longer falls, u does: t u stays below 4.
  const F tail = ExpOfTwo<kPrecision>(t * t * Set<F>(-0.721347520444481703f)) * (u * p);
  return Max(Set<F>(0.0f), x) - t * tail;
}

template <double (*kFunction)(double)>
inline D EachLane(D x) {
  double lane[D::kWidth];
  Store(lane, x);
  for (double& value : lane) value = kFunction(value);
  return LoadDoubles(lane);
}

inline double SigmoidOf(double x) { return 1.0 / (1.0 + ::exp(-x)); }
inline double SiluOf(double x) { return x / (1.0 + ::exp(-x)); }
inline double GeluOf(double x) { return 0.5 * x * ::erfc(-0.70710678118654752440 * x); }

template <Precision = Precision::kFloat>
inline D Sigmoid(D x) {
  return EachLane<SigmoidOf>(x);
}
template <Precision>
inline D Silu(D x) {
  return EachLane<SiluOf>(x);
}
template <Precision>
inline D Gelu(D x) {
  return EachLane<GeluOf>(x);
}

/// activation(x), as exact as type T of the result can show; keeps NaN.
template <Activation kActivation, typename T, typename V>
inline V Activate(V x) {
  constexpr Precision kPrecision = sizeof(T) == 2 ? Precision::kHalf : Precision::kFloat;
  if constexpr (kActivation == Activation::kRelu) {
    return Max(Set<V>(0), x);
  } else if constexpr (kActivation == Activation::kSilu) {
    return Silu<kPrecision>(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return Gelu<kPrecision>(x);
  } else {
    return x;
  }
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
