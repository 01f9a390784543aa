#include "core/axes_plan.h"

namespace onnxnorm {
namespace {

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
AxesPlan<T>::AxesPlan(const AxesLayout& layout, double epsilon, const T* x, T* y,
                      Activation activation, const simd::Level& level)
    : layout_(layout),
      epsilon_(epsilon),
      x_(x),
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
  tile_ = std::min(layout_.inner, std::max<int64_t>(64, CeilDiv(2 * kChunkElements, all_rows_)));
  tiles_ = CeilDiv(layout_.inner, tile_);
  items = kept_ * tiles_;
  item_elements = all_rows_ * tile_;
  chunk_rows_ = std::max<int64_t>(1, kChunkElements / tile_);
  statistics_chunks = apply_chunks = CeilDiv(all_rows_, chunk_rows_);
}

template class AxesPlan<float>;
template class AxesPlan<half_t>;
template class AxesPlan<bfloat16_t>;
template class AxesPlan<double>;

}  // namespace onnxnorm
