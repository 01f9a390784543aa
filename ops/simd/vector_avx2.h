// AVX2 with FMA and F16C: eight floats, four doubles.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

struct F {
  using Element = float;
  static constexpr int kWidth = 8;
  __m256 v;
};

struct D {
  using Element = double;
  static constexpr int kWidth = 4;
  __m256d v;
};

template <typename V>
inline V Set(typename V::Element value);
template <>
inline F Set<F>(float value) {
  return {_mm256_set1_ps(value)};
}
template <>
inline D Set<D>(double value) {
  return {_mm256_set1_pd(value)};
}

inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F Fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Both return b if a or b is NaN.
inline F Max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F Min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }

inline D operator+(D a, D b) { return {_mm256_add_pd(a.v, b.v)}; }
inline D operator-(D a, D b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline D operator*(D a, D b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline D operator/(D a, D b) { return {_mm256_div_pd(a.v, b.v)}; }
inline D Fma(D a, D b, D c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline D Max(D a, D b) { return {_mm256_max_pd(a.v, b.v)}; }
inline D Min(D a, D b) { return {_mm256_min_pd(a.v, b.v)}; }

inline F LoadFloats(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F LoadFloats(const half_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F LoadFloats(const bfloat16_t* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
}
inline D LoadDoubles(const double* p) { return {_mm256_loadu_pd(p)}; }

inline void Store(float* p, F v) { _mm256_storeu_ps(p, v.v); }
inline void Store(double* p, D v) { _mm256_storeu_pd(p, v.v); }
inline void Store(half_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void Store(bfloat16_t* p, F v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
}

inline void Widen(F v, D* out) {
  out[0] = {_mm256_cvtps_pd(_mm256_castps256_ps128(v.v))};
  out[1] = {_mm256_cvtps_pd(_mm256_extractf128_ps(v.v, 1))};
}

inline double ReduceAdd(D v) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v.v), _mm256_extractf128_pd(v.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}
inline float ReduceAdd(F v) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

// 1 / v. A division of eight floats is as fast as an estimate and the steps to mend it.
inline F Reciprocal(F v) { return {_mm256_div_ps(_mm256_set1_ps(1.0f), v.v)}; }
inline F RoughReciprocal(F v) { return Reciprocal(v); }

// v where a < b does not hold (also if either is NaN), else 0.
inline F ZeroIfLess(F v, F a, F b) {
  return {_mm256_and_ps(v.v, _mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ))};
}

// The float whose exponent is the last eight bits of each lane: 2^(bits - 127), and infinity and
// zero at the ends.
inline F ExponentFromBits(F v) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v.v), 23))};
}

// A mask of the first n lanes.
inline __m256i FirstMask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F LoadFirst(const float* p, int64_t n) { return {_mm256_maskload_ps(p, FirstMask(n))}; }
inline void StoreFirst(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, FirstMask(n), v.v); }
inline F KeepFirst(F v, int64_t n) {
  return {_mm256_and_ps(v.v, _mm256_castsi256_ps(FirstMask(n)))};
}
#define ONNXNORM_HAS_MASKED_FLOATS

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
