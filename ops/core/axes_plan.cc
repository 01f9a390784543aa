#include "core/axes_plan.h"

namespace onnxnorm {
namespace {

/// Whether a factor, if it is a number, is one that float can hold.
bool FitsFloat(double factor) {
  const double size = std::fabs(factor);
  return !(((size > 1e37) & (size < std::numeric_limits<double>::infinity())) |
           ((size > 0) & (size < static_cast<double>(std::numeric_limits<float>::min()))));
}

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
RmsPlan<T>::RmsPlan(const AxesLayout& layout, double epsilon, const T* weight, const T* x, T* y,
                    Activation activation, const simd::Level& level)
    : layout_(layout),
      epsilon_(epsilon),
      weight_(weight),
      x_(x),
      y_(y),
      kernels_(simd::Get<T>(level)),
      activation_(static_cast<int>(activation)),
      tiny_(epsilon < 1e-30),
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
void RmsPlan<T>::PlanRows() {
  const int64_t row = runs_ * layout_.inner;
  count_ = static_cast<double>(row);
  item_rows_ = std::clamp<int64_t>(kChunkElements / row, 1, kept_);
  items = CeilDiv(kept_, item_rows_);
  item_elements = item_rows_ * row;
  if (item_rows_ > 1) return;  // short rows: each is measured and applied in one go
  pieces_ = CeilDiv(layout_.inner, kChunkElements);
  together_ = std::max<int64_t>(1, kChunkElements / layout_.inner);
  statistics_chunks = pieces_ > 1 ? runs_ * pieces_ : CeilDiv(runs_, together_);
  apply_chunks = statistics_chunks;
  item_scratch = static_cast<size_t>(statistics_chunks) * sizeof(double);
}

template <typename T>
void RmsPlan<T>::PlanColumns() {
  all_rows_ = runs_ * layout_.rows;
  count_ = static_cast<double>(all_rows_);
  tile_ = std::min(layout_.inner, std::max<int64_t>(64, CeilDiv(2 * kChunkElements, all_rows_)));
  tiles_ = CeilDiv(layout_.inner, tile_);
  items = kept_ * tiles_;
  item_elements = all_rows_ * tile_;
  chunk_rows_ = std::max<int64_t>(1, kChunkElements / tile_);
  statistics_chunks = apply_chunks = CeilDiv(all_rows_, chunk_rows_);
  // The sums of each chunk; then, in their place, the factors in double; after them the factors in
  // float.
  item_scratch =
      static_cast<size_t>(statistics_chunks + 1) * static_cast<size_t>(tile_) * sizeof(double) +
      sizeof(double);
}

template <typename T>
template <typename Body>
void RmsPlan<T>::ForRuns(int64_t chunk, const Body& body) const {
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

template <typename T>
template <typename Body>
void RmsPlan<T>::ForRows(int64_t chunk, const Body& body) const {
  int64_t row = chunk * chunk_rows_;
  const int64_t last = std::min(all_rows_, row + chunk_rows_);
  while (row < last) {
    const int64_t run = row / layout_.rows, first = row % layout_.rows;
    const int64_t count = std::min(layout_.rows - first, last - row);
    body(layout_.reduced.Offset(run) + first * layout_.row_stride, count, row);
    row += count;
  }
}

template <typename T>
void RmsPlan<T>::Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept {
  double* sums = reinterpret_cast<double*>(scratch);
  if (layout_.inner_reduced) {
    const T* x = x_ + layout_.kept.Offset(item);
    double sum = 0;
    ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t) {
      sum += kernels_.squares(x + offset, length, tiny_);
    });
    sums[chunk] = sum;
    return;
  }
  const T* x = x_ + TileOffset(item);
  const int64_t width = TileWidth(item);
  double* out = sums + chunk * tile_;
  std::fill(out, out + width, 0.0);
  ForRows(chunk, [&](int64_t offset, int64_t rows, int64_t) {
    kernels_.column_squares(x + offset, rows, layout_.row_stride, width, tiny_, out);
  });
}

template <typename T>
void RmsPlan<T>::Finish(int64_t item, std::byte* scratch) const noexcept {
  double* sums = reinterpret_cast<double*>(scratch);
  if (layout_.inner_reduced) {
    for (int64_t i = 1; i < statistics_chunks; ++i) sums[0] += sums[i];
    if (statistics_chunks > 0) sums[0] = Factor(sums[0]);
    return;
  }
  const int64_t width = TileWidth(item);
  Compute* narrow = reinterpret_cast<Compute*>(sums + statistics_chunks * tile_);
  for (int64_t c = 1; c < statistics_chunks; ++c) {
    const double* more = sums + c * tile_;
    for (int64_t i = 0; i < width; ++i) sums[i] += more[i];
  }
  for (int64_t i = 0; i < width; ++i) sums[i] = Factor(sums[i]);
  bool fits = true;
  for (int64_t i = 0; i < width; ++i) {
    narrow[i] = static_cast<Compute>(sums[i]);
    fits &= FitsFloat(sums[i]);
  }
  sums[(statistics_chunks + 1) * tile_] = fits;
}

template <typename T>
void RmsPlan<T>::ApplyRun(int64_t offset, int64_t length, int64_t weight, double factor) const {
  if (sizeof(Compute) == sizeof(double) || FitsFloat(factor)) {
    kernels_.apply.scaled_row[activation_](x_ + offset, y_ + offset, length,
                                           static_cast<Compute>(factor), weight_ + weight);
  } else {
    simd::GetWide<T>().scaled_row[activation_](x_ + offset, y_ + offset, length, factor,
                                               weight_ + weight);
  }
}

template <typename T>
void RmsPlan<T>::Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept {
  const double* sums = reinterpret_cast<const double*>(scratch);
  if (layout_.inner_reduced && item_rows_ > 1) {
    const int64_t last = std::min(kept_, (item + 1) * item_rows_);
    for (int64_t row = item * item_rows_; row < last; ++row) {
      const int64_t start = layout_.kept.Offset(row);
      double sum = 0;
      for (int64_t run = 0; run < runs_; ++run) {
        sum += kernels_.squares(x_ + start + layout_.reduced.Offset(run), layout_.inner, tiny_);
      }
      const double factor = Factor(sum);
      for (int64_t run = 0; run < runs_; ++run) {
        ApplyRun(start + layout_.reduced.Offset(run), layout_.inner, run * layout_.inner, factor);
      }
    }
    return;
  }
  if (layout_.inner_reduced) {
    const int64_t start = layout_.kept.Offset(item);
    ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t weight) {
      ApplyRun(start + offset, length, weight, sums[0]);
    });
    return;
  }
  const int64_t start = TileOffset(item), width = TileWidth(item);
  const Compute* narrow = reinterpret_cast<const Compute*>(sums + statistics_chunks * tile_);
  const bool fits = sums[(statistics_chunks + 1) * tile_] != 0;
  ForRows(chunk, [&](int64_t offset, int64_t rows, int64_t weight) {
    const T* x = x_ + start + offset;
    T* y = y_ + start + offset;
    if (fits) {
      kernels_.apply.scaled_columns[activation_](x, y, rows, layout_.row_stride, width, narrow,
                                                 weight_ + weight);
    } else {
      simd::GetWide<T>().scaled_columns[activation_](x, y, rows, layout_.row_stride, width, sums,
                                                     weight_ + weight);
    }
  });
}

template class RmsPlan<float>;
template class RmsPlan<half_t>;
template class RmsPlan<bfloat16_t>;
template class RmsPlan<double>;

}  // namespace onnxnorm
