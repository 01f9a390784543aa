#include "core/axes_plan.h"

namespace onnxnorm {
namespace {

/// Columns of a tile, if there are as many, in multiples of a cache line.
constexpr int64_t kTileColumns = 1024, kAlignment = 16;
/// Rows whose column statistics are gathered in one go: merging costs as much as a few rows.
constexpr int64_t kStatisticsRows = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

AxesLayout::AxesLayout(const Shape& shape, const std::vector<bool>& is_reduced) {
  struct Axis {
    int64_t size;
    int64_t stride;
    bool reduced;
  };
  std::vector<Axis> axes;
  int64_t stride = shape.Product(0, shape.rank());
  for (int64_t i = 0; i < shape.rank(); ++i) {
    stride /= shape[i];
    const bool reduced = is_reduced[static_cast<size_t>(i)];
    if (shape[i] == 1) continue;
    if (!axes.empty() && axes.back().reduced == reduced) {
      axes.back().size *= shape[i];
      axes.back().stride = stride;
    } else {
      axes.push_back({shape[i], stride, reduced});
    }
  }
  if (!axes.empty()) {
    inner = axes.back().size;
    inner_reduced = axes.back().reduced;
    axes.pop_back();
  }
  if (!inner_reduced && !axes.empty()) {
    rows = axes.back().size;
    row_stride = axes.back().stride;
    axes.pop_back();
  }
  for (const Axis& axis : axes) (axis.reduced ? reduced : kept).Append(axis.size, axis.stride);
}

template <typename T>
AxesPlan<T>::AxesPlan(const AxesLayout& layout, double epsilon, const Stage<T>& stage, T* y,
                      Activation activation, const simd::Level& level)
    : layout_(layout),
      epsilon_(epsilon),
      stage_(stage),
      x_(stage.source()),
      y_(y),
      kernels_(simd::Get<T>(level)),
      activation_(static_cast<int>(activation)),
      tiny_(epsilon < kTinyEpsilon),
      kept_(layout.kept.size()),
      runs_(layout.reduced.size()) {
  cost = activation == Activation::kSilu || activation == Activation::kGelu ? 2.5 : 1;
  if (layout.inner_reduced) {
    PlanRows();
  } else {
    PlanColumns();
  }
}

template <typename T>
void AxesPlan<T>::PlanRows() {
  const int64_t row = runs_ * layout_.inner;
  count_ = static_cast<double>(row);
  item_rows_ = std::clamp<int64_t>(kChunkElements / row, 1, kept_);
  items = CeilDiv(kept_, item_rows_);
  item_elements = item_rows_ * row;
  if (item_rows_ > 1) return;
  pieces_ = CeilDiv(layout_.inner, kChunkElements);
  together_ = std::max<int64_t>(1, kChunkElements / layout_.inner);
  statistics_chunks = pieces_ > 1 ? runs_ * pieces_ : CeilDiv(runs_, together_);
  apply_chunks = statistics_chunks;
}

template <typename T>
void AxesPlan<T>::PlanColumns() {
  all_rows_ = runs_ * layout_.rows;
  count_ = static_cast<double>(all_rows_);
  // Wide tiles: rows that are far apart are read and written in long runs, which prefetchers follow
  // and which do not all fall into the same sets of a cache.
  tile_ = std::min(layout_.inner, std::max<int64_t>(kTileColumns, kChunkElements / all_rows_));
  tiles_ = CeilDiv(layout_.inner, tile_);
  tile_ = CeilDiv(CeilDiv(layout_.inner, tiles_), kAlignment) * kAlignment;
  tiles_ = CeilDiv(layout_.inner, tile_);
  items = kept_ * tiles_;
  item_elements = all_rows_ * std::min(tile_, layout_.inner);
  statistics_rows_ = std::max<int64_t>(kStatisticsRows, kChunkElements / tile_);
  statistics_chunks = CeilDiv(all_rows_, statistics_rows_);
  apply_rows_ = std::max<int64_t>(1, kChunkElements / tile_);
  apply_chunks = CeilDiv(all_rows_, apply_rows_);
}

template class AxesPlan<float>;
template class AxesPlan<half_t>;
template class AxesPlan<bfloat16_t>;
template class AxesPlan<double>;

}  // namespace onnxnorm
