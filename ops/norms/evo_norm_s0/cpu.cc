// EvoNorm-S0 (Liu et al. 2020, arXiv:2004.02967):
//   y = x * sigmoid(v_c * x) / sqrt(var_g + epsilon) * scale_c + bias_c
// with the biased variance over the channels of group g and all positions.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a group, or a few whose channels are whole blocks.
template <typename T>
class EvoNormPlan final : public ChannelPlan<T> {
  using Base = ChannelPlan<T>;

 public:
  EvoNormPlan(const ChannelLayout& layout, int64_t size, double epsilon,
              const ChannelVectors<T>& vectors, const Stage<T>& stage, T* y,
              const simd::Level& level)
      : Base(layout, stage, y, {static_cast<int>(Ending::kGate), vectors[3]},
             epsilon < kTinyEpsilon, level),
        size_(size),
        epsilon_(epsilon),
        in_(vectors) {}

 protected:
  void Parameters(int64_t item, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t first = layout_.FirstChannel(item);
    if (layout_.statistic == Statistic::kItemMoments) {
      return Group(moments[0], first, layout_.channels, 0, out);
    }
    for (int64_t c = 0; c < layout_.channels; c += size_) {
      const Moments group = MergeEqual(moments + c, size_, static_cast<double>(layout_.positions));
      Group(group, first + c, size_, c, out);
    }
  }

 private:
  using Base::layout_;

  // The channels [first, first + size) of the sample, which are written at `at`.
  void Group(const Moments& moments, int64_t first, int64_t size, int64_t at,
             const ChannelParameters& out) const {
    const double count = static_cast<double>(size) * static_cast<double>(layout_.positions);
    const double factor = 1 / std::sqrt(moments.m2 / count + epsilon_);
    for (int64_t c = 0; c < size; ++c) {
      out.mean[at + c] = 0;
      out.scale[at + c] = factor * in_[1][first + c];
      out.bias[at + c] = in_[2][first + c];
    }
  }

  int64_t size_;  // channels of a group
  double epsilon_;
  const ChannelVectors<T>& in_;
};

template <typename T>
class EvoNormS0 final : public Kernel {
 public:
  EvoNormS0(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        groups_(attributes.Int("num_groups")),
        epsilon_(attributes.Epsilon()),
        order_(attributes) {
    if (groups_ < 1) attributes.Fail("num_groups", std::to_string(groups_), "at least 1");
  }

  void CheckShapes(const InputShapes& shapes) const override {
    CheckGroups(shapes, CheckVectors(shapes, order_, 1, 3), groups_);
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    const ChannelVectors<T> vectors(run, shape.channels, 1, 3);
    Execute(EvoNormPlan<T>(ChannelLayout::Groups(shape, groups_), shape.channels / groups_,
                           epsilon_, vectors, Stage<T>(run, level_), run.Output<T>(), level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  int64_t groups_;
  double epsilon_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {"EvoNormS0",
                                  {"X", "scale", "bias", "v"},
                                  {"Y"},
                                  {"num_groups", "epsilon", "channels_last"},
                                  CreateFor<EvoNormS0>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition));

}  // namespace
}  // namespace onnxnorm
