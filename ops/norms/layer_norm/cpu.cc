// Layer normalization (Ba, Kiros and Hinton 2016, arXiv:1607.06450):
//   y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)
// with mean and biased variance over any set of axes, and scale and bias that have their sizes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/axes_plan.h"
#include "core/axes_shape.h"
#include "core/moments.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// Columns whose moments are merged together, on the stack.
constexpr int64_t kStrip = 64;

/// (x - mean) * factor + offset brings x to mean 0 and variance 1.
template <typename C>
struct Normal {
  C mean;
  C factor;
  C offset;
};

/// The same as floats, with what a float cannot hold of the mean moved to the offset.
template <typename C>
Normal<C> Narrowed(const Normal<double>& wide) {
  const C mean = static_cast<C>(wide.mean);
  const double lost = (static_cast<double>(mean) - wide.mean) * wide.factor;
  return {mean, static_cast<C>(wide.factor),
          static_cast<C>(wide.offset + (lost == lost ? lost : 0))};
}

/// Whether float holds the factor and x - mean, where the result is a number.
bool Fits(const Normal<double>& wide) {
  constexpr double kLargeMean = 1e30;
  const double size = std::fabs(wide.mean);
  return FitsFloat(wide.factor) &
         !((size > kLargeMean) & (size < std::numeric_limits<double>::infinity()));
}

/// Scratch of an item of rows: the moments of each chunk, then a Normal<double>.
/// Scratch of an item of columns: the MomentColumns of each chunk; a factor and an offset of each
/// column in double; a mean, a factor and an offset of each in Compute; whether these serve.
template <typename T>
class LayerPlan final : public AxesPlan<T> {
  using Base = AxesPlan<T>;
  using typename Base::Compute;

 public:
  LayerPlan(const AxesLayout& layout, double epsilon, const T* scale, const T* bias,
            const Stage<T>& stage, T* y, Activation activation, const simd::Level& level)
      : Base(layout, epsilon, stage, y, activation, level), scale_(scale), bias_(bias) {
    const size_t chunks = static_cast<size_t>(this->statistics_chunks);
    if (layout.inner_reduced) {
      wide_ = chunks * sizeof(CountedMoments);
      this->item_scratch = wide_ + sizeof(Normal<double>);
    } else {
      const size_t tile = static_cast<size_t>(tile_);
      wide_ = 3 * chunks * tile * sizeof(double);
      narrow_ = wide_ + 2 * tile * sizeof(double);
      flag_ = narrow_ + 3 * tile * sizeof(Compute);
      this->item_scratch = flag_ + sizeof(bool);
    }
  }

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    Base::MakeChunk(item, chunk);
    if (layout_.inner_reduced) {
      const T* x = x_ + layout_.kept.Offset(item);
      CountedMoments sum = {};
      Base::ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t) {
        Merge(kernels_.moments(x + offset, length, tiny_), static_cast<double>(length), &sum);
      });
      reinterpret_cast<CountedMoments*>(scratch)[chunk] = sum;
      return;
    }
    const T* x = x_ + Base::TileOffset(item);
    const int64_t width = Base::TileWidth(item);
    const MomentColumns out = Columns(scratch, chunk);
    int64_t done = 0;
    Base::ForRows(chunk, this->statistics_rows_, [&](int64_t offset, int64_t rows, int64_t) {
      if (done == 0) {
        kernels_.column_moments(x + offset, rows, layout_.row_stride, width, tiny_, out);
      } else {
        AddColumns(x + offset, rows, width, done, out);
      }
      done += rows;
    });
  }

  void Finish(int64_t item, std::byte* scratch) const noexcept override {
    const int64_t chunks = this->statistics_chunks;
    if (!layout_.inner_reduced) return FinishColumns(Base::TileWidth(item), scratch);
    if (chunks == 0) return;
    const CountedMoments* parts = reinterpret_cast<const CountedMoments*>(scratch);
    CountedMoments sum = {};
    for (int64_t c = 0; c < chunks; ++c) Merge(parts[c].moments, parts[c].count, &sum);
    *reinterpret_cast<Normal<double>*>(scratch + wide_) = From(sum.moments);
  }

  void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    if (Base::ShortRows()) return ApplyShortRows(item);
    if (!layout_.inner_reduced) return ApplyColumns(item, chunk, scratch);
    const Normal<double>& normal = *reinterpret_cast<const Normal<double>*>(scratch + wide_);
    const int64_t start = layout_.kept.Offset(item);
    Base::ForRuns(chunk, [&](int64_t offset, int64_t length, int64_t weight) {
      ApplyRun(start + offset, length, weight, normal);
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

  Normal<double> From(const Moments& moments) const {
    const double factor = 1 / std::sqrt(moments.m2 / this->count_ + this->epsilon_);
    return {moments.mean, factor, -RestTimes<T>(moments.rest, factor)};
  }

  MomentColumns Columns(std::byte* scratch, int64_t chunk) const {
    double* first = reinterpret_cast<double*>(scratch) + 3 * chunk * tile_;
    return {first, first + tile_, first + 2 * tile_};
  }

  // Adds the moments of `rows` more rows to `out`, which holds those of `done` rows.
  void AddColumns(const T* x, int64_t rows, int64_t width, int64_t done,
                  const MomentColumns& out) const {
    double memory[3 * kStrip];
    const MomentColumns strip = {memory, memory + kStrip, memory + 2 * kStrip};
    for (int64_t first = 0; first < width; first += kStrip) {
      const int64_t columns = std::min(kStrip, width - first);
      kernels_.column_moments(x + first, rows, layout_.row_stride, columns, tiny_, strip);
      MergeColumns(strip, static_cast<double>(rows), static_cast<double>(done), columns,
                   out.From(first));
    }
  }

  void FinishColumns(int64_t width, std::byte* scratch) const {
    const MomentColumns sum = Columns(scratch, 0);
    for (int64_t c = 1; c < this->statistics_chunks; ++c) {
      const int64_t done = c * this->statistics_rows_;
      MergeColumns(Columns(scratch, c),
                   static_cast<double>(std::min(this->statistics_rows_, this->all_rows_ - done)),
                   static_cast<double>(done), width, sum);
    }
    double* factor = reinterpret_cast<double*>(scratch + wide_);
    Compute* narrow = reinterpret_cast<Compute*>(scratch + narrow_);
    *reinterpret_cast<bool*>(scratch + flag_) =
        kernels_.parameters.columns(sum, this->count_, this->epsilon_, width, factor,
                                    factor + tile_, narrow, narrow + tile_, narrow + 2 * tile_);
  }

  void ApplyColumns(int64_t item, int64_t chunk, std::byte* scratch) const {
    const int64_t start = Base::TileOffset(item), width = Base::TileWidth(item);
    const auto apply = [&](const auto& kernels, const auto* mean, const auto* factor,
                           const auto* offset) {
      Base::ForRows(chunk, this->apply_rows_, [&](int64_t at, int64_t rows, int64_t weight) {
        kernels.normalized_columns[activation_](x_ + start + at, y_ + start + at, rows,
                                                layout_.row_stride, width, mean, factor, offset,
                                                scale_ + weight, bias_ + weight);
      });
    };
    if (*reinterpret_cast<const bool*>(scratch + flag_)) {
      const Compute* narrow = reinterpret_cast<const Compute*>(scratch + narrow_);
      apply(kernels_.apply, narrow, narrow + tile_, narrow + 2 * tile_);
    } else {
      const double* factor = reinterpret_cast<const double*>(scratch + wide_);
      apply(simd::GetWide<T>(), static_cast<const double*>(Columns(scratch, 0).mean), factor,
            factor + tile_);
    }
  }

  void ApplyShortRows(int64_t item) const {
    const int64_t last = std::min(this->kept_, (item + 1) * this->item_rows_);
    for (int64_t row = item * this->item_rows_; row < last; ++row) {
      const int64_t start = layout_.kept.Offset(row);
      Base::MakeRow(start);
      CountedMoments sum = {};
      for (int64_t run = 0; run < runs_; ++run) {
        const T* x = x_ + start + layout_.reduced.Offset(run);
        Merge(kernels_.moments(x, layout_.inner, tiny_), static_cast<double>(layout_.inner), &sum);
      }
      const Normal<double> normal = From(sum.moments);
      for (int64_t run = 0; run < runs_; ++run) {
        ApplyRun(start + layout_.reduced.Offset(run), layout_.inner, run * layout_.inner, normal);
      }
    }
  }

  void ApplyRun(int64_t offset, int64_t length, int64_t weight,
                const Normal<double>& normal) const {
    const auto apply = [&](const auto& kernels, const auto& n) {
      kernels.normalized_row[activation_](x_ + offset, y_ + offset, length, n.mean, n.factor,
                                          n.offset, scale_ + weight, bias_ + weight);
    };
    if (Base::kDouble || Fits(normal)) {
      apply(kernels_.apply, Narrowed<Compute>(normal));
    } else {
      apply(simd::GetWide<T>(), normal);
    }
  }

  const T* scale_;
  const T* bias_;
  // Offsets in an item's scratch.
  size_t wide_ = 0, narrow_ = 0, flag_ = 0;
};

template <typename T>
class LayerNorm final : public Kernel {
 public:
  LayerNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        axes_(attributes),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()) {}

  void CheckShapes(const InputShapes& shapes) const override { axes_.Check(shapes, 3); }

  void Compute(const Run& run) const override {
    const AxesLayout layout(run.shapes[0], axes_.Of(run.shapes));
    Execute(LayerPlan<T>(layout, epsilon_, run.Input<T>(1), run.Input<T>(2), Stage<T>(run, level_),
                         run.Output<T>(), activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  ReducedAxes axes_;
  double epsilon_;
  Activation activation_;
};

const OpDefinition kDefinition = {"LayerNorm",
                                  {"X", "scale", "bias"},
                                  {"Y"},
                                  {"axes", "epsilon", "activation"},
                                  CreateFor<LayerNorm>};

const RegisterOp kPlain(kDefinition), kSkip(SkipForm(kDefinition));

}  // namespace
}  // namespace onnxnorm
