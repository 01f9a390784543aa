// The statistics core that every norm shares: moments and sums of squares, of contiguous runs and
// of columns.
//
// Included by the level_*.cc files only, once for each SIMD level.
//
// Moments come from one pass over shifted data: s1 = sum(x - k), s2 = sum((x - k)^2) with k near
// the mean, block by block. If k turns out to be too far from a block's mean, the block, still in
// the first-level cache, is read again with a better k: cancellation never costs more than two
// bits of a float. Lanes run in float for a few dozen additions, then flow into
// double; blocks are merged in double (Chan, Golub and LeVeque 1979). Blocks whose squares leave
// the range of float are done in double.
#pragma once

#include <math.h>

#include "simd/kernels.h"

namespace onnxnorm::simd::ONNXNORM_LEVEL {
namespace {

constexpr int kUnroll = 4;
/// Elements of a block: two reads of it must fit the first-level cache.
constexpr int64_t kBlock = 4096;
/// Rows of a block of columns: what follows each block costs as much as some 100 rows.
constexpr int64_t kBlockRows = 1024;
/// Columns whose sums of squares are gathered together.
constexpr int64_t kPanel = 512;
/// Additions in a float lane before it flows into double.
constexpr int64_t kLaneAdditions = 32;
/// Below this mean square, squares of floats may have lost bits to underflow.
constexpr double kTinySquare = 1e-30;

inline bool IsFinite(double value) { return value - value == 0; }

/// Whether a shift that leaves the sums s1 and s2 was near enough to the mean of n elements: less
/// than about two spreads away where what a vector gathers in float flows into double, a third of
/// one where it is double already.
template <typename V>
inline bool ShiftIsNear(double s1, double s2, double n) {
  return s1 * s1 <= (V::kWidth == D::kWidth ? 0.1 : 0.75) * n * s2;
}

/// Whether a sum of squares over n elements, gathered in floats, can be trusted.
inline bool InRange(double s2, double n, bool tiny) {
  return IsFinite(s2) && !(tiny && s2 < kTinySquare * n);
}

/// Sums in double of lanes that are gathered in V.
template <typename V>
class WideSum {
 public:
  WideSum() {
    for (D& part : parts_) part = Set<D>(0);
  }
  void Add(const V& v) {
    if constexpr (kParts == 1) {
      parts_[0] = parts_[0] + v;
    } else {
      D wide[kParts];
      Widen(v, wide);
      for (int i = 0; i < kParts; ++i) parts_[i] = parts_[i] + wide[i];
    }
  }
  /// The lanes, in order.
  void Lanes(double* out) const {
    for (int i = 0; i < kParts; ++i) Store(out + i * D::kWidth, parts_[i]);
  }
  double Total() const {
    D sum = parts_[0];
    for (int i = 1; i < kParts; ++i) sum = sum + parts_[i];
    return ReduceAdd(sum);
  }

 private:
  static constexpr int kParts = V::kWidth / D::kWidth;
  D parts_[kParts];
};

/// Adds a vector's lanes to doubles.
template <typename V>
inline void AddLanes(const V& v, double* out) {
  if constexpr (V::kWidth == D::kWidth) {
    Store(out, LoadDoubles(out) + v);
  } else {
    D wide[V::kWidth / D::kWidth];
    Widen(v, wide);
    for (int i = 0; i < V::kWidth / D::kWidth; ++i) {
      double* p = out + i * D::kWidth;
      Store(p, LoadDoubles(p) + wide[i]);
    }
  }
}

/// The sum of a vector's lanes, in double.
template <typename V>
inline double Total(const V& v) {
  if constexpr (V::kWidth == D::kWidth) {
    return ReduceAdd(v);
  } else {
    D wide[V::kWidth / D::kWidth];
    Widen(v, wide);
    D sum = wide[0];
    for (int i = 1; i < V::kWidth / D::kWidth; ++i) sum = sum + wide[i];
    return ReduceAdd(sum);
  }
}

/// The sums of the lanes of two vectors.
template <typename V>
inline void BothTotals(const V& a, const V& b, double* sums) {
#if defined(ONNXNORM_HAS_TOTALS)
  if constexpr (V::kWidth != D::kWidth) return Totals(a, b, sums);
#endif
  sums[0] = Total(a);
  sums[1] = Total(b);
}

/// s1 = sum(x - k), s2 = sum((x - k)^2).
struct ShiftedSums {
  double s1;
  double s2;
};

template <typename V>
inline V TreeSum(const V* v) {
  return (v[0] + v[1]) + (v[2] + v[3]);
}

template <typename V, typename T>
ShiftedSums SumShifted(const T* x, int64_t n, typename V::Element shift) {
  constexpr int W = V::kWidth;
  const V k = Set<V>(shift);
  WideSum<V> wide1, wide2;
  int64_t i = 0;
  while (n - i >= kUnroll * W) {
    const int64_t steps = (n - i) / (kUnroll * W);
    const int64_t end = i + (steps < kLaneAdditions ? steps : kLaneAdditions) * (kUnroll * W);
    V s1[kUnroll], s2[kUnroll];
    for (int u = 0; u < kUnroll; ++u) s1[u] = s2[u] = Set<V>(0);
    for (; i < end; i += kUnroll * W) {
      for (int u = 0; u < kUnroll; ++u) {
        const V d = Memory<V>::Load(x + i + u * W) - k;
        s1[u] = s1[u] + d;
        s2[u] = Fma(d, d, s2[u]);
      }
    }
    wide1.Add(TreeSum(s1));
    wide2.Add(TreeSum(s2));
  }
  V s1 = Set<V>(0), s2 = Set<V>(0);
  for (; n - i >= W; i += W) {
    const V d = Memory<V>::Load(x + i) - k;
    s1 = s1 + d;
    s2 = Fma(d, d, s2);
  }
  if (i < n) {
    const V d = FirstLanes(LoadPart<V>(x + i, n - i) - k, n - i);
    s1 = s1 + d;
    s2 = Fma(d, d, s2);
  }
  wide1.Add(s1);
  wide2.Add(s2);
  return {wide1.Total(), wide2.Total()};
}

/// A first guess of the mean: that of the first vector.
template <typename V, typename T>
typename V::Element FirstShift(const T* x, int64_t n) {
  constexpr int W = V::kWidth;
  using Element = typename V::Element;
  const Element total = n < W ? ReduceAdd(LoadPart<V>(x, n)) / static_cast<Element>(n)
                              : ReduceAdd(Memory<V>::Load(x)) * (Element{1} / W);
  return IsFinite(static_cast<double>(total)) ? total : 0;
}

/// The sum of squared differences from the mean, from sums around a shift that is `offset` away
/// from it. If double has not the range for the squares of finite elements it is infinite, not NaN;
/// floats' squares never leave that range.
template <typename Element>
inline double SquaredSpread(double s1, double s2, double offset) {
  const double m2 = s2 - s1 * offset;
  if constexpr (sizeof(Element) == sizeof(double)) {
    if (m2 != m2 && IsFinite(s1)) return HUGE_VAL;
  }
  return m2 < 0 ? 0 : m2;  // keeps NaN
}

/// Moments from n elements' sums around a shift.
inline Moments FromSums(double shift, double s1, double s2, double n) {
  const double offset = s1 / n;
  Moments moments;
  moments.mean = TwoSum(shift, offset, &moments.rest);
  moments.m2 = SquaredSpread<double>(s1, s2, offset);
  return moments;
}

/// Moments of one block.
template <typename V, typename T>
Moments BlockMoments(const T* x, int64_t n, typename V::Element shift, bool tiny) {
  const double count = static_cast<double>(n);
  ShiftedSums s = SumShifted<V>(x, n, shift);
  if (!ShiftIsNear<V>(s.s1, s.s2, count)) {
    const auto better = static_cast<typename V::Element>(shift + s.s1 / count);
    if (IsFinite(static_cast<double>(better))) {
      shift = better;
      s = SumShifted<V>(x, n, shift);
    }
  }
  if constexpr (V::kWidth != D::kWidth) {
    if (!InRange(s.s2, count, tiny)) return BlockMoments<D>(x, n, shift, tiny);
  }
  return FromSums(shift, s.s1, s.s2, count);
}

template <typename V, typename T>
Moments RunMoments(const T* x, int64_t n, bool tiny) {
  auto shift = FirstShift<V>(x, n);
  if (n <= kBlock) return BlockMoments<V>(x, n, shift, tiny);
  CountedMoments sum = {};
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = n - i < kBlock ? n - i : kBlock;
    Merge(BlockMoments<V>(x + i, count, shift, tiny), static_cast<double>(count), &sum);
    if (IsFinite(sum.moments.mean)) shift = static_cast<typename V::Element>(sum.moments.mean);
  }
  return sum.moments;
}

/// A first guess of the mean from four elements, cheaper than a vector's sum.
template <typename V, typename T>
inline typename V::Element SpreadShift(const T* x, int64_t n) {
  if constexpr (sizeof(T) != sizeof(typename V::Element)) {
    return FirstShift<V>(x, n);
  } else {
    const T total = (x[0] + x[n / 4]) + (x[n / 2] + x[n - 1 - n / 4]);
    return total - total == 0 ? total / 4 : 0;
  }
}

/// Short segments, a few at a time: each in one vector of sums, and what follows without branches.
template <typename V, typename T>
void ShortMoments(const T* x, int64_t segments, int64_t size, bool tiny, Moments* out) {
  constexpr int W = V::kWidth;
  constexpr int64_t kTogether = 8;
  using Element = typename V::Element;
  const int64_t whole = size / W * W, left = size - whole;
  const double n = static_cast<double>(size), inverse = 1 / n;
  for (int64_t first = 0; first < segments; first += kTogether) {
    const int64_t count = segments - first < kTogether ? segments - first : kTogether;
    Element shift[kTogether];
    double sums[kTogether][2];
    for (int64_t i = 0; i < count; ++i) {
      const T* p = x + (first + i) * size;
      shift[i] = SpreadShift<V>(p, size);
      const V k = Set<V>(shift[i]);
      V a = Set<V>(0), b = Set<V>(0);
      for (int64_t j = 0; j < whole; j += W) {
        const V d = Memory<V>::Load(p + j) - k;
        a = a + d;
        b = Fma(d, d, b);
      }
      if (left > 0) {
        const V d = FirstLanes(LoadPart<V>(p + whole, left) - k, left);
        a = a + d;
        b = Fma(d, d, b);
      }
      BothTotals(a, b, sums[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      const double s1 = sums[i][0], s2 = sums[i][1];
      if (!ShiftIsNear<V>(s1, s2, n) || (V::kWidth != D::kWidth && !InRange(s2, n, tiny))) {
        out[first + i] = BlockMoments<V>(x + (first + i) * size, size, shift[i], tiny);
        continue;
      }
      const double offset = s1 * inverse;
      Moments& m = out[first + i];
      m.mean = TwoSum(static_cast<double>(shift[i]), offset, &m.rest);
      m.m2 = SquaredSpread<Element>(s1, s2, offset);
    }
  }
}

template <typename V, typename T>
void SegmentMoments(const T* x, int64_t segments, int64_t size, bool tiny, Moments* out) {
  if (segments > 1 && size <= kLaneAdditions / 2 * V::kWidth) {
    return ShortMoments<V>(x, segments, size, tiny, out);
  }
  for (int64_t s = 0; s < segments; ++s) out[s] = RunMoments<V>(x + s * size, size, tiny);
}

template <typename V, typename T>
double SumSquares(const T* x, int64_t n) {
  constexpr int W = V::kWidth;
  WideSum<V> wide;
  int64_t i = 0;
  while (n - i >= kUnroll * W) {
    const int64_t steps = (n - i) / (kUnroll * W);
    const int64_t end = i + (steps < kLaneAdditions ? steps : kLaneAdditions) * (kUnroll * W);
    V s[kUnroll];
    for (int u = 0; u < kUnroll; ++u) s[u] = Set<V>(0);
    for (; i < end; i += kUnroll * W) {
      for (int u = 0; u < kUnroll; ++u) {
        const V v = Memory<V>::Load(x + i + u * W);
        s[u] = Fma(v, v, s[u]);
      }
    }
    wide.Add(TreeSum(s));
  }
  V s = Set<V>(0);
  for (; n - i >= W; i += W) {
    const V v = Memory<V>::Load(x + i);
    s = Fma(v, v, s);
  }
  if (i < n) {
    const V v = LoadPart<V>(x + i, n - i);
    s = Fma(v, v, s);
  }
  wide.Add(s);
  return wide.Total();
}

template <typename V, typename T>
double RunSquares(const T* x, int64_t n, bool tiny) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = n - i < kBlock ? n - i : kBlock;
    double block = SumSquares<V>(x + i, m);
    if constexpr (V::kWidth != D::kWidth) {
      if (!InRange(block, static_cast<double>(m), tiny)) block = SumSquares<D>(x + i, m);
    }
    total += block;
  }
  return total;
}

template <typename V, typename T>
void SegmentSquares(const T* x, int64_t segments, int64_t size, bool tiny, Moments* out) {
  for (int64_t s = 0; s < segments; ++s) out[s] = {0, 0, RunSquares<V>(x + s * size, size, tiny)};
}

/// Up to U vectors of neighbouring columns; the last vector may be partial.
template <typename V, typename T, int U>
struct ColumnTile {
  static constexpr int kLanes = U * V::kWidth;

  const T* x;
  int64_t stride;
  int64_t lanes;

  V Load(int64_t row, int u) const {
    const T* p = x + row * stride + u * V::kWidth;
    if (lanes == kLanes) return Memory<V>::Load(p);
    const int64_t left = lanes - u * V::kWidth;
    if (left >= V::kWidth) return Memory<V>::Load(p);
    return left <= 0 ? Set<V>(0) : LoadPart<V>(p, left);
  }

  /// Sums of rows [first, last) for each lane.
  void SumShifted(int64_t first, int64_t last, const V* k, double* s1, double* s2) const {
    WideSum<V> wide1[U], wide2[U];
    for (int64_t r = first; r < last;) {
      const int64_t end = last - r < kLaneAdditions ? last : r + kLaneAdditions;
      V a[U], b[U];
      for (int u = 0; u < U; ++u) a[u] = b[u] = Set<V>(0);
      for (; r < end; ++r) {
        for (int u = 0; u < U; ++u) {
          const V d = Load(r, u) - k[u];
          a[u] = a[u] + d;
          b[u] = Fma(d, d, b[u]);
        }
      }
      for (int u = 0; u < U; ++u) {
        wide1[u].Add(a[u]);
        wide2[u].Add(b[u]);
      }
    }
    for (int u = 0; u < U; ++u) {
      wide1[u].Lanes(s1 + u * V::kWidth);
      wide2[u].Lanes(s2 + u * V::kWidth);
    }
  }
};

/// Sums of one column around a shift that is moved, within what Element holds, to where it is near
/// enough.
template <typename T, typename Element>
ShiftedSums OneColumnInDouble(const T* x, int64_t rows, int64_t stride, Element* shift) {
  const double n = static_cast<double>(rows);
  ShiftedSums sums = {};
  for (int attempt = 0; attempt < 2; ++attempt) {
    const double k = static_cast<double>(*shift);
    sums = {};
    for (int64_t r = 0; r < rows; ++r) {
      const double d = ToDouble(x[r * stride]) - k;
      sums.s1 += d;
      sums.s2 += d * d;
    }
    const auto better = static_cast<Element>(k + sums.s1 / n);
    if (ShiftIsNear<D>(sums.s1, sums.s2, n) || !(better - better == 0) || attempt == 1) break;
    *shift = better;
  }
  return sums;
}

/// The mean of a tile's first rows, as shifts.
template <typename V, typename T, int U>
void FirstShifts(const ColumnTile<V, T, U>& tile, int64_t rows, typename V::Element* shift) {
  constexpr int64_t kRows = 8;
  const int64_t count = rows < kRows ? rows : kRows;
  V sum[U];
  for (int u = 0; u < U; ++u) sum[u] = tile.Load(0, u);
  for (int64_t r = 1; r < count; ++r) {
    for (int u = 0; u < U; ++u) sum[u] = sum[u] + tile.Load(r, u);
  }
  for (int u = 0; u < U; ++u) Store(shift + u * V::kWidth, sum[u]);
  const auto factor = 1 / static_cast<typename V::Element>(count);
  for (int i = 0; i < U * V::kWidth; ++i) {
    const auto mean = shift[i] * factor;
    shift[i] = mean - mean == 0 ? mean : 0;
  }
}

/// How many rows go together, for a loop that is unrolled.
template <int64_t kRows>
struct RowCount {
  static constexpr int64_t kCount = kRows;
};

/// Adds the moments of one block of n rows, from its sums around the shifts, to those of the
/// `done` rows before. Without branches, so that compilers vectorize it.
template <int N, typename Element>
void AddColumns(const Element* shift, const double* s1, const double* s2, double n, double done,
                MomentColumns sum) {
  const double part = n / (done + n), between = done * part, inverse = 1 / n;
  for (int i = 0; i < N; ++i) {
    const double offset = s1[i] * inverse;
    const double m2 = SquaredSpread<Element>(s1[i], s2[i], offset);
    double rest = 0, lost = 0;
    const double mean = TwoSum(static_cast<double>(shift[i]), offset, &rest);
    const double delta = (mean - sum.mean[i]) + (rest - sum.rest[i]);
    const double moved = TwoSum(sum.mean[i], delta * part, &lost);
    const bool first = done == 0;
    sum.mean[i] = first ? mean : moved;
    sum.rest[i] = first ? rest : sum.rest[i] + lost;
    sum.m2[i] = first ? m2 : sum.m2[i] + m2 + delta * delta * between;
  }
}

template <typename V, typename T, int U>
void TileMoments(const ColumnTile<V, T, U>& tile, int64_t rows, bool tiny, MomentColumns out) {
  using Element = typename V::Element;
  constexpr int N = ColumnTile<V, T, U>::kLanes;
  Element shift[N];
  double s1[N], s2[N];
  double kept[3][N] = {};
  const MomentColumns sum = {kept[0], kept[1], kept[2]};
  V k[U];
  FirstShifts(tile, rows, shift);
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    const int64_t last = rows - first < kBlockRows ? rows : first + kBlockRows;
    const double n = static_cast<double>(last - first);
    for (int attempt = 0; attempt < 2; ++attempt) {
      for (int u = 0; u < U; ++u) k[u] = Memory<V>::Load(shift + u * V::kWidth);
      tile.SumShifted(first, last, k, s1, s2);
      int near = 0;
      for (int i = 0; i < N; ++i) near += ShiftIsNear<V>(s1[i], s2[i], n);
      if (near == N || attempt == 1) break;
      for (int i = 0; i < N; ++i) {
        const auto better = static_cast<Element>(static_cast<double>(shift[i]) + s1[i] / n);
        shift[i] = better - better == 0 ? better : shift[i];
      }
    }
    int trusted = 0;
    for (int i = 0; i < N; ++i) trusted += V::kWidth == D::kWidth || InRange(s2[i], n, tiny);
    for (int i = 0; trusted != N && i < N; ++i) {  // once more, in double
      if (i >= tile.lanes || InRange(s2[i], n, tiny)) continue;
      const T* column = tile.x + first * tile.stride + i;
      const ShiftedSums sums = OneColumnInDouble(column, last - first, tile.stride, &shift[i]);
      s1[i] = sums.s1;
      s2[i] = sums.s2;
    }
    AddColumns<N>(shift, s1, s2, n, static_cast<double>(first), sum);
    for (int i = 0; i < N; ++i) {
      const auto mean = static_cast<Element>(sum.mean[i]);
      shift[i] = mean - mean == 0 ? mean : shift[i];
    }
  }
  for (int64_t i = 0; i < tile.lanes; ++i) {
    out.mean[i] = sum.mean[i];
    out.rest[i] = sum.rest[i];
    out.m2[i] = sum.m2[i];
  }
}

/// One block of channels: a few rows side by side are a row of more columns, whose moments are
/// merged afterwards.
template <typename V, typename T>
void BlockColumnMoments(const T* x, int64_t rows, bool tiny, MomentColumns out) {
  constexpr int W = V::kWidth, N = kUnroll * W;
  double memory[3 * N];
  const MomentColumns wide = {memory, memory + N, memory + 2 * N};
  const int64_t each = rows / kUnroll, left = rows - each * kUnroll;
  TileMoments(ColumnTile<V, T, kUnroll>{x, N, N}, each, tiny, wide);
  for (int i = 0; i < W; ++i) {
    out.mean[i] = wide.mean[i];
    out.rest[i] = wide.rest[i];
    out.m2[i] = wide.m2[i];
  }
  const double n = static_cast<double>(each);
  for (int u = 1; u < kUnroll; ++u) MergeColumns(wide.From(u * W), n, u * n, W, out);
  if (left == 0) return;
  TileMoments(ColumnTile<V, T, 1>{x + each * N, W, W}, left, tiny, wide);
  MergeColumns(wide, static_cast<double>(left), kUnroll * n, W, out);
}

/// Sums around shifts over neighbouring columns, `count` whole vectors, row by row: memory is read
/// in runs that are as long as the panel is wide.
template <typename V, typename T>
void PanelSums(const T* x, int64_t rows, int64_t stride, int64_t count,
               const typename V::Element* shift, double* out1, double* out2) {
  constexpr int W = V::kWidth;
  constexpr int64_t kTogether = 4;
  V s1[kPanel / W], s2[kPanel / W];
  for (int64_t i = 0; i < count * W; ++i) out1[i] = out2[i] = 0;
  for (int64_t r = 0; r < rows;) {
    const int64_t end = rows - r < kLaneAdditions ? rows : r + kLaneAdditions;
    for (int64_t i = 0; i < count; ++i) s1[i] = s2[i] = Set<V>(0);
    const auto add = [&](auto together) {
      constexpr int64_t kRows = decltype(together)::kCount;
      const T* p = x + r * stride;
      for (int64_t i = 0; i < count; ++i) {
        const V k = Memory<V>::Load(shift + i * W);
        V a = s1[i], b = s2[i];
        for (int64_t j = 0; j < kRows; ++j) {
          const V d = Memory<V>::Load(p + j * stride + i * W) - k;
          a = a + d;
          b = Fma(d, d, b);
        }
        s1[i] = a;
        s2[i] = b;
      }
      r += kRows;
    };
    while (r + kTogether <= end) add(RowCount<kTogether>());
    while (r < end) add(RowCount<1>());
    for (int64_t i = 0; i < count; ++i) {
      AddLanes(s1[i], out1 + i * W);
      AddLanes(s2[i], out2 + i * W);
    }
  }
}

/// One vector of a panel's columns, if their sums cannot be used: on their own, with better shifts.
template <typename V, typename T>
void MomentsAgain(const T* x, int64_t rows, int64_t stride, bool tiny, double done,
                  MomentColumns out) {
  constexpr int W = V::kWidth;
  const ColumnTile<V, T, 1> tile = {x, stride, W};
  if (done == 0) return TileMoments(tile, rows, tiny, out);
  double memory[3 * W];
  const MomentColumns part = {memory, memory + W, memory + 2 * W};
  TileMoments(tile, rows, tiny, part);
  MergeColumns(part, static_cast<double>(rows), done, W, out);
}

/// A panel of whole vectors.
template <typename V, typename T>
void PanelMoments(const T* x, int64_t rows, int64_t stride, int64_t count, bool tiny,
                  MomentColumns out) {
  using Element = typename V::Element;
  constexpr int W = V::kWidth;
  Element shift[kPanel];
  double s1[kPanel], s2[kPanel];
  for (int64_t i = 0; i < count; ++i) {
    FirstShifts(ColumnTile<V, T, 1>{x + i * W, stride, W}, rows, shift + i * W);
  }
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    const int64_t some = rows - first < kBlockRows ? rows - first : kBlockRows;
    const double n = static_cast<double>(some), done = static_cast<double>(first);
    const T* block = x + first * stride;
    PanelSums<V>(block, some, stride, count, shift, s1, s2);
    for (int64_t c = 0; c < count * W; c += W) {
      int good = 0;
      for (int64_t i = c; i < c + W; ++i) {
        good +=
            ShiftIsNear<V>(s1[i], s2[i], n) & (V::kWidth == D::kWidth || InRange(s2[i], n, tiny));
      }
      if (good == W) {
        AddColumns<W>(shift + c, s1 + c, s2 + c, n, done, out.From(c));
      } else {
        MomentsAgain<V>(block + c, some, stride, tiny, done, out.From(c));
      }
    }
    for (int64_t i = 0; i < count * W; ++i) {
      const auto mean = static_cast<Element>(out.mean[i]);
      shift[i] = mean - mean == 0 ? mean : shift[i];
    }
  }
}

template <typename V, typename T>
void ColumnMoments(const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                   MomentColumns out) {
  constexpr int64_t kLanes = kUnroll * V::kWidth;
  if (columns == V::kWidth && stride == columns && rows >= 4 * kUnroll) {
    return BlockColumnMoments<V>(x, rows, tiny, out);
  }
  int64_t c = 0;
  while (columns - c > kLanes) {
    const int64_t left = (columns - c) / V::kWidth, most = kPanel / V::kWidth;
    const int64_t count = left < most ? left : most;
    PanelMoments<V>(x + c, rows, stride, count, tiny, out.From(c));
    c += count * V::kWidth;
  }
  if (columns - c > V::kWidth) {
    TileMoments(ColumnTile<V, T, kUnroll>{x + c, stride, columns - c}, rows, tiny, out.From(c));
  } else if (columns > c) {
    TileMoments(ColumnTile<V, T, 1>{x + c, stride, columns - c}, rows, tiny, out.From(c));
  }
}

/// Adds to `out`, which holds one sum for each column, the squares of rows [0, rows), gathered in
/// `sums`.
template <typename V, typename T>
void AddSquares(const V* sums, const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                double* out) {
  for (int64_t c = 0; c < columns; c += V::kWidth) {
    double lane[V::kWidth];
    WideSum<V> wide;
    wide.Add(sums[c / V::kWidth]);
    wide.Lanes(lane);
    const int64_t lanes = columns - c < V::kWidth ? columns - c : V::kWidth;
    bool in_range = true;
    for (double value : lane) {
      in_range &= V::kWidth == D::kWidth || InRange(value, static_cast<double>(rows), tiny);
    }
    for (int64_t i = 0; i < lanes; ++i) {
      if (!in_range) {
        lane[i] = 0;
        for (int64_t r = 0; r < rows; ++r) {
          const double value = ToDouble(x[r * stride + c + i]);
          lane[i] += value * value;
        }
      }
      out[c + i] += lane[i];
    }
  }
}

/// A panel of neighbouring columns, row by row: memory is read in runs that are as long as the
/// panel is wide.
template <typename V, typename T>
void PanelSquares(const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                  double* out) {
  constexpr int W = V::kWidth;
  V sums[kPanel / W];
  const int64_t whole = columns / W, left = columns % W;
  for (int64_t first = 0; first < rows; first += kLaneAdditions) {
    const int64_t last = rows - first < kLaneAdditions ? rows : first + kLaneAdditions;
    for (V& sum : sums) sum = Set<V>(0);
    int64_t r = first;
    for (; r + 4 <= last; r += 4) {
      const T* p = x + r * stride;
      for (int64_t i = 0; i < whole; ++i) {
        V sum = sums[i];
        for (int k = 0; k < 4; ++k) {
          const V v = Memory<V>::Load(p + k * stride + i * W);
          sum = Fma(v, v, sum);
        }
        sums[i] = sum;
      }
    }
    for (; r < last; ++r) {
      for (int64_t i = 0; i < whole; ++i) {
        const V v = Memory<V>::Load(x + r * stride + i * W);
        sums[i] = Fma(v, v, sums[i]);
      }
    }
    for (r = first; left > 0 && r < last; ++r) {
      const V v = LoadPart<V>(x + r * stride + whole * W, left);
      sums[whole] = Fma(v, v, sums[whole]);
    }
    AddSquares(sums, x + first * stride, last - first, stride, columns, tiny, out);
  }
}

template <typename V, typename T>
void ColumnSquares(const T* x, int64_t rows, int64_t stride, int64_t columns, bool tiny,
                   double* out) {
  for (int64_t c = 0; c < columns; c += kPanel) {
    PanelSquares<V>(x + c, rows, stride, columns - c < kPanel ? columns - c : kPanel, tiny,
                    out + c);
  }
}

}  // namespace
}  // namespace onnxnorm::simd::ONNXNORM_LEVEL
