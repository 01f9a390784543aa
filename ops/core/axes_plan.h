// The plan of norms over any set of axes, scaled by weights that lie along these axes: RMS norm.
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

/// y = activation(x / sqrt(mean(x^2) + epsilon) * weight).
template <typename T>
class RmsPlan final : public Plan {
 public:
  RmsPlan(const AxesLayout& layout, double epsilon, const T* weight, const T* x, T* y,
          Activation activation, const simd::Level& level);

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override;
  void Finish(int64_t item, std::byte* scratch) const noexcept override;
  void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override;

 private:
  using Compute = typename ComputeOf<T>::type;

  void PlanRows();
  void PlanColumns();
  // Calls body(offset of the run in the row, length, index of its first weight) for the runs of one
  // chunk of a row.
  template <typename Body>
  void ForRuns(int64_t chunk, const Body& body) const;
  // Calls body(offset in the tile, rows, index of their first weight) for the rows of one chunk of
  // a tile.
  template <typename Body>
  void ForRows(int64_t chunk, const Body& body) const;
  void ApplyRun(int64_t offset, int64_t length, int64_t weight, double factor) const;
  double Factor(double squares) const { return 1 / std::sqrt(squares / count_ + epsilon_); }
  int64_t TileOffset(int64_t item) const {
    return layout_.kept.Offset(item / tiles_) + item % tiles_ * tile_;
  }
  int64_t TileWidth(int64_t item) const {
    return std::min(tile_, layout_.inner - item % tiles_ * tile_);
  }

  const AxesLayout& layout_;
  double epsilon_;
  const T* weight_;
  const T* x_;
  T* y_;
  const simd::Kernels<T>& kernels_;
  int activation_;
  bool tiny_;
  double count_ = 1;                       // reduced elements of one statistic
  int64_t kept_ = 1;                       // rows, or sets of columns
  int64_t runs_ = 1;                       // runs of a row
  int64_t item_rows_ = 1;                  // rows of an item
  int64_t pieces_ = 1, together_ = 1;      // pieces of a run, or runs of a chunk
  int64_t tile_ = 1, tiles_ = 1;           // columns of a tile, tiles of a set of columns
  int64_t all_rows_ = 1, chunk_rows_ = 1;  // rows of a tile and of one of its chunks
};

}  // namespace onnxnorm
