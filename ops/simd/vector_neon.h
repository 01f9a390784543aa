// NEON on aarch64: four floats, two doubles.
#pragma once

#include <arm_neon.h>

#include "core/types.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

struct F {
  using Element = float;
  static constexpr int kWidth = 4;
  float32x4_t v;
};

struct D {
  using Element = double;
  static constexpr int kWidth = 2;
  float64x2_t v;
};

template <typename V>
inline V Set(typename V::Element value);
template <>
inline F Set<F>(float value) {
  return {vdupq_n_f32(value)};
}
template <>
inline D Set<D>(double value) {
  return {vdupq_n_f64(value)};
}

inline F operator+(F a, F b) { return {vaddq_f32(a.v, b.v)}; }
inline F operator-(F a, F b) { return {vsubq_f32(a.v, b.v)}; }
inline F operator*(F a, F b) { return {vmulq_f32(a.v, b.v)}; }
inline F operator/(F a, F b) { return {vdivq_f32(a.v, b.v)}; }
inline F Fma(F a, F b, F c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// Both return b if a or b is NaN: a comparison with NaN is false.
inline F Max(F a, F b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
inline F Min(F a, F b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }

inline D operator+(D a, D b) { return {vaddq_f64(a.v, b.v)}; }
inline D operator-(D a, D b) { return {vsubq_f64(a.v, b.v)}; }
inline D operator*(D a, D b) { return {vmulq_f64(a.v, b.v)}; }
inline D operator/(D a, D b) { return {vdivq_f64(a.v, b.v)}; }
inline D Fma(D a, D b, D c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
inline D Max(D a, D b) { return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)}; }
inline D Min(D a, D b) { return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)}; }

inline F LoadFloats(const float* p) { return {vld1q_f32(p)}; }
inline F LoadFloats(const half_t* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
inline F LoadFloats(const bfloat16_t* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
inline D LoadDoubles(const double* p) { return {vld1q_f64(p)}; }

inline void Store(float* p, F v) { vst1q_f32(p, v.v); }
inline void Store(double* p, D v) { vst1q_f64(p, v.v); }
inline void Store(half_t* p, F v) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v.v)));
}
inline void Store(bfloat16_t* p, F v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t ordered = vceqq_f32(v.v, v.v);
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vbslq_u32(ordered, rounded, quiet), 16));
}

inline void Widen(F v, D* out) {
  out[0] = {vcvt_f64_f32(vget_low_f32(v.v))};
  out[1] = {vcvt_high_f64_f32(v.v)};
}

inline double ReduceAdd(D v) { return vaddvq_f64(v.v); }
inline float ReduceAdd(F v) { return vaddvq_f32(v.v); }

// 1 / v.
inline F Reciprocal(F v) { return {vdivq_f32(vdupq_n_f32(1.0f), v.v)}; }
inline F RoughReciprocal(F v) { return Reciprocal(v); }

// v where a < b does not hold (also if either is NaN), else 0.
inline F ZeroIfLess(F v, F a, F b) {
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v.v), vcltq_f32(a.v, b.v)))};
}

// The float whose exponent is the last eight bits of each lane: 2^(bits - 127), and infinity and
// zero at the ends.
inline F ExponentFromBits(F v) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v.v), 23))};
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
