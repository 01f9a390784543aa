// Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467):
//   y = activation(x / sqrt(mean(x^2) + epsilon) * scale)
// with the mean over any set of axes, and a scale that has their sizes.
#include <algorithm>
#include <cmath>

#include "core/axes_plan.h"
#include "core/axes_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

template <typename T>
class RmsPlan final : public AxesPlan<T> {
  using Base = AxesPlan<T>;
  using typename Base::Compute;

 public:
  RmsPlan(const AxesLayout& layout, double epsilon, const T* weight, const T* x, T* y,
          Activation activation, const simd::Level& level)
      : Base(layout, epsilon, x, y, activation, level), weight_(weight) {
    const size_t chunks = static_cast<size_t>(this->statistics_chunks);
    if (layout.inner_reduced) {
      this->item_scratch = chunks * sizeof(double);
    } else {
      // The sums of each chunk; then, in their place, the factors in double; after them the factors
      // in float, and whether these serve.
      this->item_scratch =
          (chunks + 1) * static_cast<size_t>(tile_) * sizeof(double) + sizeof(double);
    }
  }

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    double* sums = reinterpret_cast<double*>(scratch);
    if (layout_.inner_reduced) {
      const T* x = x_ + layout_.kept.Offset(item);
      double sum = 0;
      Base::ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t) {
        sum += kernels_.squares(x + offset, length, tiny_);
      });
      sums[chunk] = sum;
      return;
    }
    const T* x = x_ + Base::TileOffset(item);
    const int64_t width = Base::TileWidth(item);
    double* out = sums + chunk * tile_;
    std::fill(out, out + width, 0.0);
    Base::ForRows(chunk, [&](int64_t offset, int64_t rows, int64_t) {
      kernels_.column_squares(x + offset, rows, layout_.row_stride, width, tiny_, out);
    });
  }

  void Finish(int64_t item, std::byte* scratch) const noexcept override {
    double* sums = reinterpret_cast<double*>(scratch);
    const int64_t chunks = this->statistics_chunks;
    if (layout_.inner_reduced) {
      for (int64_t i = 1; i < chunks; ++i) sums[0] += sums[i];
      if (chunks > 0) sums[0] = Factor(sums[0]);
      return;
    }
    const int64_t width = Base::TileWidth(item);
    Compute* narrow = reinterpret_cast<Compute*>(sums + chunks * tile_);
    for (int64_t c = 1; c < chunks; ++c) {
      const double* more = sums + c * tile_;
      for (int64_t i = 0; i < width; ++i) sums[i] += more[i];
    }
    for (int64_t i = 0; i < width; ++i) sums[i] = Factor(sums[i]);
    bool fits = true;
    for (int64_t i = 0; i < width; ++i) {
      narrow[i] = static_cast<Compute>(sums[i]);
      fits &= FitsFloat(sums[i]);
    }
    sums[(chunks + 1) * tile_] = fits;
  }

  void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    const double* sums = reinterpret_cast<const double*>(scratch);
    if (Base::ShortRows()) return ApplyShortRows(item);
    if (layout_.inner_reduced) {
      const int64_t start = layout_.kept.Offset(item);
      Base::ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t weight) {
        ApplyRun(start + offset, length, weight, sums[0]);
      });
      return;
    }
    const int64_t start = Base::TileOffset(item), width = Base::TileWidth(item);
    const int64_t chunks = this->statistics_chunks;
    const Compute* narrow = reinterpret_cast<const Compute*>(sums + chunks * tile_);
    const bool fits = sums[(chunks + 1) * tile_] != 0;
    Base::ForRows(chunk, [&](int64_t offset, int64_t rows, int64_t weight) {
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

 private:
  using Base::activation_;
  using Base::kernels_;
  using Base::layout_;
  using Base::runs_;
  using Base::tile_;
  using Base::tiny_;
  using Base::x_;
  using Base::y_;

  double Factor(double squares) const {
    return 1 / std::sqrt(squares / this->count_ + this->epsilon_);
  }

  void ApplyShortRows(int64_t item) const {
    const int64_t last = std::min(this->kept_, (item + 1) * this->item_rows_);
    for (int64_t row = item * this->item_rows_; row < last; ++row) {
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
  }

  void ApplyRun(int64_t offset, int64_t length, int64_t weight, double factor) const {
    if (Base::kDouble || FitsFloat(factor)) {
      kernels_.apply.scaled_row[activation_](x_ + offset, y_ + offset, length,
                                             static_cast<Compute>(factor), weight_ + weight);
    } else {
      simd::GetWide<T>().scaled_row[activation_](x_ + offset, y_ + offset, length, factor,
                                                 weight_ + weight);
    }
  }

  const T* weight_;
};

template <typename T>
class RMSNorm final : public Kernel {
 public:
  RMSNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        axes_(attributes),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()) {}

  void CheckShapes(const InputShapes& shapes) const override { axes_.Check(shapes, 2); }

  void Compute(const Run& run) const override {
    const AxesLayout layout(run.shapes[0], axes_.Of(run.shapes));
    Execute(RmsPlan<T>(layout, epsilon_, run.Input<T>(1), run.Input<T>(0), run.Output<T>(),
                       activation_, level_),
            run.parallel);
  }

 private:
  const simd::Level& level_;
  ReducedAxes axes_;
  double epsilon_;
  Activation activation_;
};

const RegisterOp kRegister(
    {"RMSNorm", {"X", "scale"}, {"Y"}, {"axes", "epsilon", "activation"}, CreateFor<RMSNorm>});

}  // namespace
}  // namespace onnxnorm
