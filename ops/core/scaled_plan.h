// The plan of norms that divide by a root of a sum of squares over any set of axes, and multiply by
// a weight that lies along these axes: RMS norm and L2 norm.
#pragma once

#include <algorithm>

#include "core/axes_plan.h"
#include "core/axes_shape.h"
#include "core/op.h"

namespace onnxnorm {

/// The plan of one such norm, which says:
///   static double Factor(double squares, double count, double epsilon): what a row with that sum
///   of
///     squares over `count` elements is multiplied by;
///   static bool Tiny(double epsilon): whether squares that underflow in float matter.
template <typename T, typename Norm>
class ScaledPlan final : public AxesPlan<T> {
  using Base = AxesPlan<T>;
  using typename Base::Compute;

 public:
  ScaledPlan(const AxesLayout& layout, double epsilon, const T* weight, const Stage<T>& stage, T* y,
             Activation activation, const simd::Level& level)
      : Base(layout, epsilon, stage, y, activation, level), weight_(weight) {
    this->tiny_ = Norm::Tiny(epsilon);
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
    Base::MakeChunk(item, chunk);
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
    Base::ForRows(chunk, this->statistics_rows_, [&](int64_t offset, int64_t rows, int64_t) {
      kernels_.column_squares(x + offset, rows, layout_.row_stride, width, tiny_, out);
    });
  }

  void Finish(int64_t item, std::byte* scratch) const noexcept override {
    double* sums = reinterpret_cast<double*>(scratch);
    const int64_t chunks = this->statistics_chunks;
    if (layout_.inner_reduced) {
      for (int64_t i = 1; i < chunks; ++i) sums[0] += sums[i];
      if (chunks > 0) sums[0] = FactorOf(sums[0]);
      return;
    }
    const int64_t width = Base::TileWidth(item);
    Compute* narrow = reinterpret_cast<Compute*>(sums + chunks * tile_);
    for (int64_t c = 1; c < chunks; ++c) {
      const double* more = sums + c * tile_;
      for (int64_t i = 0; i < width; ++i) sums[i] += more[i];
    }
    for (int64_t i = 0; i < width; ++i) sums[i] = FactorOf(sums[i]);
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
    Base::ForRows(chunk, this->apply_rows_, [&](int64_t offset, int64_t rows, int64_t weight) {
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

  double FactorOf(double squares) const {
    return Norm::Factor(squares, this->count_, this->epsilon_);
  }

  void ApplyShortRows(int64_t item) const {
    const int64_t last = std::min(this->kept_, (item + 1) * this->item_rows_);
    for (int64_t row = item * this->item_rows_; row < last; ++row) {
      const int64_t start = layout_.kept.Offset(row);
      Base::MakeRow(start);
      double sum = 0;
      for (int64_t run = 0; run < runs_; ++run) {
        sum += kernels_.squares(x_ + start + layout_.reduced.Offset(run), layout_.inner, tiny_);
      }
      const double factor = FactorOf(sum);
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

/// The kernel of such a norm.
template <typename T, typename Norm>
class ScaledNorm : public Kernel {
 public:
  ScaledNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        axes_(attributes),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()) {}

  void CheckShapes(const InputShapes& shapes) const override { axes_.Check(shapes, 2); }

  void Compute(const Run& run) const override {
    const AxesLayout layout(run.shapes[0], axes_.Of(run.shapes));
    Execute(ScaledPlan<T, Norm>(layout, epsilon_, run.Input<T>(1), Stage<T>(run, level_),
                                run.Output<T>(), activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  ReducedAxes axes_;
  double epsilon_;
  Activation activation_;
};

}  // namespace onnxnorm
