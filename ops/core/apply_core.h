// The apply core that every norm shares: y = activation((x - mean) * scale + bias), in several
// layouts.
//
// Included by the level_*.cc files only, once for each SIMD level. The mean is taken off before
// scaling, so that a mean far larger than the spread costs no accuracy; what float cannot hold of
// the mean is in the bias.
#pragma once

#include "simd/kernels.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

/// y[i] = f(x[i], i) for i in [0, n), vector by vector. The last vector overlaps the one before: it
/// is read before anything is written, so that x and y may be the same memory.
template <typename V, typename T, typename Body>
inline void MapRun(const T* x, T* y, int64_t n, const Body& body) {
  constexpr int W = V::kWidth;
  if (n < W) {
    StorePart(y, body(LoadPart<V>(x, n), 0, n), n);
    return;
  }
  const int64_t tail = n - W;
  const V last = Memory<V>::Load(x + tail);
  int64_t i = 0;
  for (; i + 2 * W <= tail; i += 2 * W) {
    const V a = Memory<V>::Load(x + i), b = Memory<V>::Load(x + i + W);
    Memory<V>::Store(y + i, body(a, i, W));
    Memory<V>::Store(y + i + W, body(b, i + W, W));
  }
  for (; i < tail; i += W) Memory<V>::Store(y + i, body(Memory<V>::Load(x + i), i, W));
  Memory<V>::Store(y + tail, body(last, tail, W));
}

/// Parameters of lanes [i, i + n): a whole vector, or its first n lanes.
template <typename V, typename P>
inline V Parameters(const P* p, int64_t i, int64_t n) {
  return n == V::kWidth ? Memory<V>::Load(p + i) : LoadPart<V>(p + i, n);
}

template <typename V, typename T, Activation kActivation>
void ApplyPlanes(const T* x, T* y, int64_t planes, int64_t size, const typename V::Element* mean,
                 const typename V::Element* scale, const typename V::Element* bias) {
  for (int64_t p = 0; p < planes; ++p) {
    const V m = Set<V>(mean[p]), a = Set<V>(scale[p]), b = Set<V>(bias[p]);
    MapRun<V>(x + p * size, y + p * size, size,
              [&](V v, int64_t, int64_t) { return Activate<kActivation>(Fma(v - m, a, b)); });
  }
}

template <typename V, typename T, Activation kActivation>
void ApplyRows(const T* x, T* y, int64_t rows, int64_t columns, const typename V::Element* mean,
               const typename V::Element* scale, const typename V::Element* bias) {
  for (int64_t r = 0; r < rows; ++r) {
    MapRun<V>(x + r * columns, y + r * columns, columns, [&](V v, int64_t i, int64_t n) {
      return Activate<kActivation>(Fma(v - Parameters<V>(mean, i, n), Parameters<V>(scale, i, n),
                                       Parameters<V>(bias, i, n)));
    });
  }
}

template <typename V, typename T, Activation kActivation>
void ApplyScaledRow(const T* x, T* y, int64_t columns, typename V::Element factor,
                    const T* weight) {
  const V f = Set<V>(factor);
  MapRun<V>(x, y, columns, [&](V v, int64_t i, int64_t n) {
    return Activate<kActivation>(v * f * Parameters<V>(weight, i, n));
  });
}

template <typename V, typename T, Activation kActivation>
void ApplyScaledColumns(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                        const typename V::Element* factor, const T* weight) {
  for (int64_t r = 0; r < rows; ++r) {
    const V w = Set<V>(static_cast<typename V::Element>(ToDouble(weight[r])));
    MapRun<V>(x + r * stride, y + r * stride, columns, [&](V v, int64_t i, int64_t n) {
      return Activate<kActivation>(v * Parameters<V>(factor, i, n) * w);
    });
  }
}

template <typename V, typename T, Activation kActivation>
void ApplyNormalizedRow(const T* x, T* y, int64_t columns, typename V::Element mean,
                        typename V::Element factor, typename V::Element offset, const T* scale,
                        const T* bias) {
  const V m = Set<V>(mean), f = Set<V>(factor), o = Set<V>(offset);
  MapRun<V>(x, y, columns, [&](V v, int64_t i, int64_t n) {
    return Activate<kActivation>(
        Fma(Fma(v - m, f, o), Parameters<V>(scale, i, n), Parameters<V>(bias, i, n)));
  });
}

template <typename V, typename T, Activation kActivation>
void ApplyNormalizedColumns(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                            const typename V::Element* mean, const typename V::Element* factor,
                            const typename V::Element* offset, const T* scale, const T* bias) {
  for (int64_t r = 0; r < rows; ++r) {
    const V a = Set<V>(static_cast<typename V::Element>(ToDouble(scale[r])));
    const V b = Set<V>(static_cast<typename V::Element>(ToDouble(bias[r])));
    MapRun<V>(x + r * stride, y + r * stride, columns, [&](V v, int64_t i, int64_t n) {
      const V normal = Fma(v - Parameters<V>(mean, i, n), Parameters<V>(factor, i, n),
                           Parameters<V>(offset, i, n));
      return Activate<kActivation>(Fma(normal, a, b));
    });
  }
}

template <typename V, typename T>
constexpr ApplyKernels<T, typename V::Element> MakeApplyKernels() {
  constexpr Activation kNone = Activation::kNone, kRelu = Activation::kRelu,
                       kSilu = Activation::kSilu, kGelu = Activation::kGelu;
  return {{ApplyPlanes<V, T, kNone>, ApplyPlanes<V, T, kRelu>, ApplyPlanes<V, T, kSilu>,
           ApplyPlanes<V, T, kGelu>},
          {ApplyRows<V, T, kNone>, ApplyRows<V, T, kRelu>, ApplyRows<V, T, kSilu>,
           ApplyRows<V, T, kGelu>},
          {ApplyScaledRow<V, T, kNone>, ApplyScaledRow<V, T, kRelu>, ApplyScaledRow<V, T, kSilu>,
           ApplyScaledRow<V, T, kGelu>},
          {ApplyScaledColumns<V, T, kNone>, ApplyScaledColumns<V, T, kRelu>,
           ApplyScaledColumns<V, T, kSilu>, ApplyScaledColumns<V, T, kGelu>},
          {ApplyNormalizedRow<V, T, kNone>, ApplyNormalizedRow<V, T, kRelu>,
           ApplyNormalizedRow<V, T, kSilu>, ApplyNormalizedRow<V, T, kGelu>},
          {ApplyNormalizedColumns<V, T, kNone>, ApplyNormalizedColumns<V, T, kRelu>,
           ApplyNormalizedColumns<V, T, kSilu>, ApplyNormalizedColumns<V, T, kGelu>}};
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
