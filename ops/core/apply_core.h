// The apply core that every norm shares: y = ending((x - mean) * scale + bias), in several layouts.
//
// Included by the level_*.cc files only, once for each SIMD level. The mean is taken off before
// scaling, so that a mean far larger than the spread costs no accuracy; what float cannot hold of
// the mean is in the bias.
#pragma once

#include "simd/kernels.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

/// Runs shorter than this many vectors are not aligned: that costs a vector.
constexpr int64_t kAlignedVectors = 8;

/// Elements up to the next address that a whole vector's store does not straddle cache lines from;
/// 0 if there is none.
template <typename V, typename T>
inline int64_t ToBoundary(const T* p) {
  constexpr uintptr_t kBytes = V::kWidth * sizeof(T);
  const uintptr_t past = reinterpret_cast<uintptr_t>(p) % kBytes;
  return past % sizeof(T) == 0 && past != 0 ? static_cast<int64_t>((kBytes - past) / sizeof(T)) : 0;
}

/// y[i] = f(x[i], i) for i in [0, n), vector by vector. Where parts of vectors are cheap, a short
/// run ends in one. Else the last vector overlaps the one before: it
/// is read before anything is written, so that x and y may be the same memory. Long runs into other
/// memory begin with a vector that overlaps, too, so that the others are aligned.
template <typename V, typename From, typename To, typename Body>
inline void MapRun(const From* x, To* y, int64_t n, const Body& body) {
  constexpr int W = V::kWidth;
  if (n < W || (kCheapParts<V, From> && kCheapParts<V, To> && n < kAlignedVectors * W)) {
    int64_t i = 0;
    for (; i + W <= n; i += W) Memory<V>::Store(y + i, body(Memory<V>::Load(x + i), i, W));
    if (i < n) StorePart(y + i, body(LoadPart<V>(x + i, n - i), i, n - i), n - i);
    return;
  }
  const int64_t tail = n - W;
  const V last = Memory<V>::Load(x + tail);
  int64_t i = 0;
  if (n >= kAlignedVectors * W && static_cast<const void*>(x) != y) {
    const int64_t head = ToBoundary<V>(y);
    if (head > 0) Memory<V>::Store(y, body(Memory<V>::Load(x), 0, W));
    i = head;
  }
  for (; i + 2 * W <= tail; i += 2 * W) {
    const V a = Memory<V>::Load(x + i), b = Memory<V>::Load(x + i + W);
    Memory<V>::Store(y + i, body(a, i, W));
    Memory<V>::Store(y + i + W, body(b, i + W, W));
  }
  for (; i < tail; i += W) Memory<V>::Store(y + i, body(Memory<V>::Load(x + i), i, W));
  Memory<V>::Store(y + tail, body(last, tail, W));
}

template <typename V, typename T>
void Add(const T* a, const T* b, T* out, int64_t n) {
  constexpr int W = V::kWidth;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    Memory<V>::Store(out + i, Memory<V>::Load(a + i) + Memory<V>::Load(b + i));
  }
  if (i < n) StorePart(out + i, LoadPart<V>(a + i, n - i) + LoadPart<V>(b + i, n - i), n - i);
}

template <typename V, typename From, Activation kActivation, typename To>
void ActivateRun(const From* x, To* y, int64_t n) {
  MapRun<V>(x, y, n, [](V v, int64_t, int64_t) { return Activate<kActivation, To>(v); });
}

/// What a channel-wise norm makes of one element: see Ending.
template <int kEnding, typename T, typename V>
inline V Channel(V x, V mean, V scale, V bias, V t) {
  constexpr int kFloor = static_cast<int>(Ending::kFloor), kGate = static_cast<int>(Ending::kGate);
  if constexpr (kEnding == kGate) {
    return Fma(x * Sigmoid(t * x) - mean, scale, bias);
  } else if constexpr (kEnding >= kFloor) {
    return Max(t,
               Activate<static_cast<Activation>(kEnding - kFloor), T>(Fma(x - mean, scale, bias)));
  } else {
    return Activate<static_cast<Activation>(kEnding), T>(Fma(x - mean, scale, bias));
  }
}

/// Whether an ending has a parameter for each channel.
constexpr bool HasParameter(int ending) { return ending >= static_cast<int>(Ending::kFloor); }

/// Parameters of lanes [i, i + n): a whole vector, or its first n lanes.
template <typename V, typename P>
inline V Parameters(const P* p, int64_t i, int64_t n) {
  return n == V::kWidth ? Memory<V>::Load(p + i) : LoadPart<V>(p + i, n);
}

template <typename V, int kEnding, typename From, typename To>
inline void MapPlanes(const From* x, To* y, int64_t planes, int64_t size,
                      const typename V::Element* mean, const typename V::Element* scale,
                      const typename V::Element* bias, const typename V::Element* t) {
  for (int64_t p = 0; p < planes; ++p) {
    const V m = Set<V>(mean[p]), a = Set<V>(scale[p]), b = Set<V>(bias[p]);
    const V c = HasParameter(kEnding) ? Set<V>(t[p]) : a;
    MapRun<V>(x + p * size, y + p * size, size,
              [=](V v, int64_t, int64_t) { return Channel<kEnding, To>(v, m, a, b, c); });
  }
}

template <typename V, typename T, int kEnding>
void ApplyPlanes(const T* x, T* y, int64_t planes, int64_t size, const typename V::Element* mean,
                 const typename V::Element* scale, const typename V::Element* bias,
                 const typename V::Element* t) {
  using Element = typename V::Element;
  constexpr auto kLast = static_cast<Activation>(kEnding);
  constexpr int kNone = static_cast<int>(Activation::kNone);
  constexpr int64_t kElements = 2048;
  // Much of the last vector of a short plane may be idle: a slow activation goes over many planes
  // at once, while they are in the first-level cache.
  if constexpr (kLast == Activation::kSilu || kLast == Activation::kGelu) {
    if (planes > 1 && size < kAlignedVectors * V::kWidth && size % V::kWidth != 0) {
      const int64_t some = kElements / size;
      for (int64_t p = 0; p < planes; p += some) {
        const int64_t count = planes - p < some ? planes - p : some;
        Element buffer[sizeof(T) == sizeof(Element) ? 1 : kElements];
        const auto apply = [&](auto* between) {
          MapPlanes<V, kNone>(x + p * size, between, count, size, mean + p, scale + p, bias + p, t);
          ActivateRun<V, Element, kLast>(between, y + p * size, count * size);
        };
        if constexpr (sizeof(T) == sizeof(Element)) {
          apply(y + p * size);
        } else {
          apply(buffer);
        }
      }
      return;
    }
  }
  MapPlanes<V, kEnding>(x, y, planes, size, mean, scale, bias, t);
}

template <typename V, typename T, int kEnding>
void ApplyRows(const T* x, T* y, int64_t rows, int64_t columns, const typename V::Element* mean,
               const typename V::Element* scale, const typename V::Element* bias,
               const typename V::Element* t) {
  if (columns == V::kWidth) {  // blocks: the parameters stay in registers
    const V m = Memory<V>::Load(mean), a = Memory<V>::Load(scale), b = Memory<V>::Load(bias);
    const V c = HasParameter(kEnding) ? Memory<V>::Load(t) : a;
    for (int64_t i = 0; i < rows * columns; i += V::kWidth) {
      Memory<V>::Store(y + i, Channel<kEnding, T>(Memory<V>::Load(x + i), m, a, b, c));
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    MapRun<V>(x + r * columns, y + r * columns, columns, [=](V v, int64_t i, int64_t n) {
      const V a = Parameters<V>(scale, i, n);
      return Channel<kEnding, T>(v, Parameters<V>(mean, i, n), a, Parameters<V>(bias, i, n),
                                 HasParameter(kEnding) ? Parameters<V>(t, i, n) : a);
    });
  }
}

template <typename V, typename T, Activation kActivation>
void ApplyScaledRow(const T* x, T* y, int64_t columns, typename V::Element factor,
                    const T* weight) {
  const V f = Set<V>(factor);
  MapRun<V>(x, y, columns, [=](V v, int64_t i, int64_t n) {
    return Activate<kActivation, T>(v * f * Parameters<V>(weight, i, n));
  });
}

/// Rows that read the parameters of their columns together.
constexpr int64_t kRowsTogether = 4;

/// y = body(x, parameters of the row, parameters of the lanes) for `rows` rows that are `stride`
/// apart. A few rows share what is loaded for their columns; into other memory, vectors at both
/// ends overlap so that the others are aligned.
template <typename V, typename T, typename OfRow, typename OfLanes, typename Body>
inline void MapRows(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                    const OfRow& of_row, const OfLanes& of_lanes, const Body& body) {
  constexpr int W = V::kWidth;
  int64_t r = 0;
  if (stride % W == 0 && columns >= W && (x != y || columns % W == 0)) {
    const int64_t head = x != y ? ToBoundary<V>(y) : 0;
    for (; r + kRowsTogether <= rows; r += kRowsTogether) {
      const decltype(of_row(r)) few[kRowsTogether] = {of_row(r), of_row(r + 1), of_row(r + 2),
                                                      of_row(r + 3)};
      const auto step = [&, from = x + r * stride, to = y + r * stride](int64_t i) {
        const auto lanes = of_lanes(i, W);
        for (int64_t k = 0; k < kRowsTogether; ++k) {
          const int64_t at = k * stride + i;
          Memory<V>::Store(to + at, body(Memory<V>::Load(from + at), few[k], lanes));
        }
      };
      if (head > 0) step(0);
      int64_t i = head;
      for (; i + W <= columns; i += W) step(i);
      if (i < columns) step(columns - W);
    }
  }
  for (; r < rows; ++r) {
    const auto row = of_row(r);
    MapRun<V>(x + r * stride, y + r * stride, columns,
              [=](V v, int64_t i, int64_t n) { return body(v, row, of_lanes(i, n)); });
  }
}

/// A row's parameter in all lanes.
template <typename V, typename T>
inline V Spread(const T* p) {
  return Set<V>(static_cast<typename V::Element>(ToDouble(*p)));
}

template <typename V, typename T, Activation kActivation>
void ApplyScaledColumns(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                        const typename V::Element* factor, const T* weight) {
  MapRows<V>(
      x, y, rows, stride, columns, [=](int64_t r) { return Spread<V>(weight + r); },
      [=](int64_t i, int64_t n) { return Parameters<V>(factor, i, n); },
      [](V v, V w, V f) { return Activate<kActivation, T>(v * f * w); });
}

template <typename V, typename T, Activation kActivation>
void ApplyNormalizedRow(const T* x, T* y, int64_t columns, typename V::Element mean,
                        typename V::Element factor, typename V::Element offset, const T* scale,
                        const T* bias) {
  const V m = Set<V>(mean), f = Set<V>(factor), o = Set<V>(offset);
  MapRun<V>(x, y, columns, [=](V v, int64_t i, int64_t n) {
    return Activate<kActivation, T>(
        Fma(Fma(v - m, f, o), Parameters<V>(scale, i, n), Parameters<V>(bias, i, n)));
  });
}

template <typename V, typename T, Activation kActivation>
void ApplyNormalizedColumns(const T* x, T* y, int64_t rows, int64_t stride, int64_t columns,
                            const typename V::Element* mean, const typename V::Element* factor,
                            const typename V::Element* offset, const T* scale, const T* bias) {
  struct Row {
    V scale, bias;
  };
  struct Lanes {
    V mean, factor, offset;
  };
  MapRows<V>(
      x, y, rows, stride, columns,
      [=](int64_t r) { return Row{Spread<V>(scale + r), Spread<V>(bias + r)}; },
      [=](int64_t i, int64_t n) {
        return Lanes{Parameters<V>(mean, i, n), Parameters<V>(factor, i, n),
                     Parameters<V>(offset, i, n)};
      },
      [](V v, const Row& row, const Lanes& lanes) {
        return Activate<kActivation, T>(
            Fma(Fma(v - lanes.mean, lanes.factor, lanes.offset), row.scale, row.bias));
      });
}

template <typename V, typename T>
constexpr ApplyKernels<T, typename V::Element> MakeApplyKernels() {
  constexpr Activation kNone = Activation::kNone, kRelu = Activation::kRelu,
                       kSilu = Activation::kSilu, kGelu = Activation::kGelu;
  return {{ApplyPlanes<V, T, 0>, ApplyPlanes<V, T, 1>, ApplyPlanes<V, T, 2>, ApplyPlanes<V, T, 3>,
           ApplyPlanes<V, T, 4>, ApplyPlanes<V, T, 5>, ApplyPlanes<V, T, 6>, ApplyPlanes<V, T, 7>,
           ApplyPlanes<V, T, 8>},
          {ApplyRows<V, T, 0>, ApplyRows<V, T, 1>, ApplyRows<V, T, 2>, ApplyRows<V, T, 3>,
           ApplyRows<V, T, 4>, ApplyRows<V, T, 5>, ApplyRows<V, T, 6>, ApplyRows<V, T, 7>,
           ApplyRows<V, T, 8>},
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
