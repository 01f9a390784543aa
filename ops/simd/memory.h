// Loads and stores of any element type into either vector type, whole or in part. Included by the
// level_*.cc files after their vector_*.h.
#pragma once

#include "core/types.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

template <typename V>
struct Memory;

template <>
struct Memory<F> {
  template <typename T>
  static F Load(const T* p) {
    return LoadFloats(p);
  }
  template <typename T>
  static void Store(T* p, F v) {
    ONNXNORM_LEVEL::Store(p, v);
  }
};

// Other types than double are computed in double only where float has not the range: speed is no
// concern.
template <>
struct Memory<D> {
  static D Load(const double* p) { return LoadDoubles(p); }
  template <typename T>
  static D Load(const T* p) {
    double lane[D::kWidth];
    for (int i = 0; i < D::kWidth; ++i) lane[i] = ToDouble(p[i]);
    return LoadDoubles(lane);
  }
  static void Store(double* p, D v) { ONNXNORM_LEVEL::Store(p, v); }
  template <typename T>
  static void Store(T* p, D v) {
    double lane[D::kWidth];
    ONNXNORM_LEVEL::Store(lane, v);
    for (int i = 0; i < D::kWidth; ++i) FromDouble(lane[i], p + i);
  }
};

/// The first n elements (n <= width); zeros after them.
template <typename V, typename T>
inline V LoadPart(const T* p, int64_t n) {
  T part[V::kWidth] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return Memory<V>::Load(part);
}

template <typename V, typename T>
inline void StorePart(T* p, V v, int64_t n) {
  T part[V::kWidth];
  Memory<V>::Store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

#if defined(ONNXNORM_HAS_MASKED_FLOATS)
template <>
inline F LoadPart<F, float>(const float* p, int64_t n) {
  return LoadFirst(p, n);
}
template <>
inline void StorePart<F, float>(float* p, F v, int64_t n) {
  StoreFirst(p, v, n);
}
#endif

#if defined(ONNXNORM_HAS_MASKED_HALVES)
template <>
inline F LoadPart<F, half_t>(const half_t* p, int64_t n) {
  return LoadFirst(p, n);
}
template <>
inline F LoadPart<F, bfloat16_t>(const bfloat16_t* p, int64_t n) {
  return LoadFirst(p, n);
}
template <>
inline void StorePart<F, half_t>(half_t* p, F v, int64_t n) {
  StoreFirst(p, v, n);
}
#endif

/// Whether loading and storing part of a vector costs about as much as a whole one.
template <typename V, typename T>
constexpr bool kCheapParts = false;
#if defined(ONNXNORM_HAS_MASKED_HALVES)
template <>
constexpr bool kCheapParts<F, float> = true;
template <>
constexpr bool kCheapParts<F, half_t> = true;
#endif

/// Keeps the first n lanes, zeroes the others.
template <typename V>
inline V FirstLanes(V v, int64_t n) {
  typename V::Element lane[V::kWidth];
  Store(lane, v);
  return LoadPart<V>(lane, n);
}

#if defined(ONNXNORM_HAS_MASKED_FLOATS)
template <>
inline F FirstLanes<F>(F v, int64_t n) {
  return KeepFirst(v, n);
}
#endif

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
