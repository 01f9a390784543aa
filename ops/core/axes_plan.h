// The plan of norms over any set of axes, scaled by weights that lie along these axes: RMS norm and
// layer norm.
//
// Neighbouring axes of one kind (reduced or kept) are one axis. If the innermost is reduced, an
// item is a few rows, each a set of contiguous runs; if it is kept, an item is a tile of
// neighbouring columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/plan.h"
#include "core/scratch.h"
#include "core/shape.h"
#include "core/stage.h"
#include "simd/dispatch.h"

namespace onnxnorm {

/// A list of axes that is walked in order, the last one fastest.
class AxisWalk {
 public:
  void Append(int64_t size, int64_t stride) { axes_.push_back({size, stride}); }
  int64_t size() const {
    int64_t size = 1;
    for (const Axis& axis : axes_) size *= axis.size;
    return size;
  }
  /// Where element i lies.
  int64_t Offset(int64_t i) const {
    int64_t offset = 0;
    for (size_t a = axes_.size(); a-- > 0; i /= axes_[a].size) {
      offset += i % axes_[a].size * axes_[a].stride;
    }
    return offset;
  }

 private:
  struct Axis {
    int64_t size;
    int64_t stride;
  };
  std::vector<Axis> axes_;
};

/// A shape that is not empty, as alternating kept and reduced axes.
struct AxesLayout {
  AxisWalk kept;
  AxisWalk reduced;
  /// The innermost axis: contiguous, of that length, and not in the lists above.
  int64_t inner = 1;
  bool inner_reduced = true;
  /// The reduced axis next to kept columns, also not in the lists: rows that are `row_stride`
  /// apart.
  int64_t rows = 1;
  int64_t row_stride = 0;

  AxesLayout(const Shape& shape, const std::vector<bool>& is_reduced);
};

/// What the norms over axes share: how a call is cut into items and chunks. Derived plans set
/// `item_scratch`.
template <typename T>
class AxesPlan : public Plan {
 public:
  AxesPlan(const AxesLayout& layout, double epsilon, const Stage<T>& stage, T* y,
           Activation activation, const simd::Level& level);

 protected:
  using Compute = typename ComputeOf<T>::type;
  static constexpr bool kDouble = sizeof(Compute) == sizeof(double);

  // Calls body(offset of the run in the row, length, index of its first weight) for the runs of one
  // chunk of a row.
  template <typename Body>
  void ForRuns(int64_t chunk, const Body& body) const {
    if (pieces_ > 1) {
      const int64_t run = chunk / pieces_, first = chunk % pieces_ * kChunkElements;
      body(layout_.reduced.Offset(run) + first, std::min(kChunkElements, layout_.inner - first),
           run * layout_.inner + first);
      return;
    }
    const int64_t last = std::min(runs_, (chunk + 1) * together_);
    for (int64_t run = chunk * together_; run < last; ++run) {
      body(layout_.reduced.Offset(run), layout_.inner, run * layout_.inner);
    }
  }

  // Calls body(offset in the tile, rows, index of their first weight) for the rows of one chunk of
  // `chunk_rows` rows of a tile.
  template <typename Body>
  void ForRows(int64_t chunk, int64_t chunk_rows, const Body& body) const {
    int64_t row = chunk * chunk_rows;
    const int64_t last = std::min(all_rows_, row + chunk_rows);
    while (row < last) {
      const int64_t run = row / layout_.rows, first = row % layout_.rows;
      const int64_t count = std::min(layout_.rows - first, last - row);
      body(layout_.reduced.Offset(run) + first * layout_.row_stride, count, row);
      row += count;
    }
  }

  int64_t TileOffset(int64_t item) const {
    return layout_.kept.Offset(item / tiles_) + item % tiles_ * tile_;
  }
  int64_t TileWidth(int64_t item) const {
    return std::min(tile_, layout_.inner - item % tiles_ * tile_);
  }
  // Whether an item is several short rows, each measured and applied in one go.
  bool ShortRows() const { return layout_.inner_reduced && item_rows_ > 1; }

  // Makes the source of one chunk of an item's statistics.
  void MakeChunk(int64_t item, int64_t chunk) const {
    if (!stage_.active()) return;
    if (layout_.inner_reduced) {
      const int64_t start = layout_.kept.Offset(item);
      ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t) {
        stage_.Make(start + offset, length);
      });
    } else {
      const int64_t start = TileOffset(item), width = TileWidth(item);
      ForRows(chunk, statistics_rows_, [&](int64_t offset, int64_t rows, int64_t) {
        stage_.MakeRows(start + offset, rows, layout_.row_stride, width);
      });
    }
  }
  // Makes the source of one row.
  void MakeRow(int64_t start) const {
    if (!stage_.active()) return;
    for (int64_t run = 0; run < runs_; ++run) {
      stage_.Make(start + layout_.reduced.Offset(run), layout_.inner);
    }
  }

  const AxesLayout& layout_;
  double epsilon_;
  const Stage<T> stage_;
  const T* x_;
  T* y_;
  const simd::Kernels<T>& kernels_;
  int activation_;
  bool tiny_;
  double count_ = 1;                              // reduced elements of one statistic
  int64_t kept_ = 1;                              // rows, or sets of columns
  int64_t runs_ = 1;                              // runs of a row
  int64_t item_rows_ = 1;                         // rows of an item
  int64_t pieces_ = 1, together_ = 1;             // pieces of a run, or runs of a chunk
  int64_t tile_ = 1, tiles_ = 1;                  // columns of a tile, tiles of a set of columns
  int64_t all_rows_ = 1;                          // rows of a tile
  int64_t statistics_rows_ = 1, apply_rows_ = 1;  // rows of one of its chunks

 private:
  void PlanRows();
  void PlanColumns();
};

/// Whether a factor, if it is a number, is one that float can hold.
inline bool FitsFloat(double factor) {
  const double size = std::fabs(factor);
  return !(((size > 1e37) & (size < std::numeric_limits<double>::infinity())) |
           ((size > 0) & (size < static_cast<double>(std::numeric_limits<float>::min()))));
}

}  // namespace onnxnorm
