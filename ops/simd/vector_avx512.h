// AVX-512 (F, BW, DQ, VL): sixteen floats, eight doubles.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

struct F {
  using Element = float;
  static constexpr int kWidth = 16;
  __m512 v;
};

struct D {
  using Element = double;
  static constexpr int kWidth = 8;
  __m512d v;
};

template <typename V>
inline V Set(typename V::Element value);
template <>
inline F Set<F>(float value) {
  return {_mm512_set1_ps(value)};
}
template <>
inline D Set<D>(double value) {
  return {_mm512_set1_pd(value)};
}

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F Fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Both return b if a or b is NaN.
inline F Max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F Min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }

inline D operator+(D a, D b) { return {_mm512_add_pd(a.v, b.v)}; }
inline D operator-(D a, D b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline D operator*(D a, D b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline D operator/(D a, D b) { return {_mm512_div_pd(a.v, b.v)}; }
inline D Fma(D a, D b, D c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline D Max(D a, D b) { return {_mm512_max_pd(a.v, b.v)}; }
inline D Min(D a, D b) { return {_mm512_min_pd(a.v, b.v)}; }

inline F LoadFloats(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F LoadFloats(const half_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F LoadFloats(const bfloat16_t* p) {
  const __m512i bits =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
}
inline D LoadDoubles(const double* p) { return {_mm512_loadu_pd(p)}; }

inline void Store(float* p, F v) { _mm512_storeu_ps(p, v.v); }
inline void Store(double* p, D v) { _mm512_storeu_pd(p, v.v); }
inline void Store(half_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void Store(bfloat16_t* p, F v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  const __m512i upper = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(upper));
}

inline void Widen(F v, D* out) {
  out[0] = {_mm512_cvtps_pd(_mm512_castps512_ps256(v.v))};
  out[1] = {_mm512_cvtps_pd(_mm512_extractf32x8_ps(v.v, 1))};
}

inline float ReduceAdd(F v) { return _mm512_reduce_add_ps(v.v); }
inline double ReduceAdd(D v) { return _mm512_reduce_add_pd(v.v); }

// The sums of the lanes of a and of b, in double.
inline void Totals(F a, F b, double* sums) {
  const __m512d wide_a = _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)),
                                       _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1)));
  const __m512d wide_b = _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(b.v)),
                                       _mm512_cvtps_pd(_mm512_extractf32x8_ps(b.v, 1)));
  const __m512d pairs =
      _mm512_add_pd(_mm512_unpacklo_pd(wide_a, wide_b), _mm512_unpackhi_pd(wide_a, wide_b));
  const __m256d half =
      _mm256_add_pd(_mm512_castpd512_pd256(pairs), _mm512_extractf64x4_pd(pairs, 1));
  _mm_storeu_pd(sums, _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1)));
}
#define ONNXNORM_HAS_TOTALS

// 1 / v for v from 1 to 2^126, to about one ulp; a division takes five times as long.
inline F Reciprocal(F v) {
  const F first = {_mm512_rcp14_ps(v.v)};
  return Fma(first, {_mm512_fnmadd_ps(v.v, first.v, _mm512_set1_ps(1.0f))}, first);
}

// The same to 14 bits.
inline F RoughReciprocal(F v) { return {_mm512_rcp14_ps(v.v)}; }

// v where a < b does not hold (also if either is NaN), else 0.
inline F ZeroIfLess(F v, F a, F b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), v.v)};
}

// The float whose exponent is the last eight bits of each lane: 2^(bits - 127), and infinity and
// zero at the ends.
inline F ExponentFromBits(F v) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v.v), 23))};
}

// A mask of the first n lanes.
inline __mmask16 FirstMask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F LoadFirst(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(FirstMask(n), p)}; }
inline void StoreFirst(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, FirstMask(n), v.v); }
inline F KeepFirst(F v, int64_t n) { return {_mm512_maskz_mov_ps(FirstMask(n), v.v)}; }
inline F LoadFirst(const half_t* p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(FirstMask(n), p))};
}
inline F LoadFirst(const bfloat16_t* p, int64_t n) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(FirstMask(n), p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
}
inline void StoreFirst(half_t* p, F v, int64_t n) {
  _mm256_mask_storeu_epi16(p, FirstMask(n),
                           _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#define ONNXNORM_HAS_MASKED_FLOATS
#define ONNXNORM_HAS_MASKED_HALVES

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
