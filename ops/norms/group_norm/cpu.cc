// Group normalization (Wu and He 2018, arXiv:1803.08494):
//   y = activation((x - mean_g) / sqrt(var_g + epsilon) * scale_c + bias_c)
// with mean and biased variance over the channels of group g and all positions.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a group, or a few whose channels are whole blocks.
template <typename T>
class GroupPlan final : public ChannelPlan<T> {
  using Base = ChannelPlan<T>;
  using typename Base::Compute;

 public:
  GroupPlan(const ChannelLayout& layout, int64_t size, double epsilon, const double* scale,
            const double* bias, const Stage<T>& stage, T* y, Activation activation,
            const simd::Level& level)
      : Base(layout, stage, y, {EndingOf(activation)}, epsilon < kTinyEpsilon, level),
        size_(size),
        epsilon_(epsilon),
        scale_(scale),
        bias_(bias),
        range_(scale, layout.channels * layout.items_per_sample) {}

 protected:
  void Parameters(int64_t item, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t first = layout_.FirstChannel(item);
    if (layout_.statistic == Statistic::kItemMoments) {
      return Group(moments[0], first, layout_.channels, out);
    }
    for (int64_t c = 0; c < layout_.channels; c += size_) {
      const Moments group = MergeEqual(moments + c, size_, static_cast<double>(layout_.positions));
      Group(group, first + c, size_, {out.mean + c, out.scale + c, out.bias + c});
    }
  }

  bool NarrowParameters(int64_t item, const Moments* moments, const ChannelParameters& wide,
                        Compute* narrow) const noexcept override {
    if (layout_.statistic != Statistic::kItemMoments) {
      return Base::NarrowParameters(item, moments, wide, narrow);
    }
    const int64_t n = layout_.channels, first = layout_.FirstChannel(item);
    const double factor = Factor(moments[0], n);
    if (range_.Holds(moments[0].mean, factor)) {
      this->kernels_.parameters.group(moments[0].mean, moments[0].rest, factor, scale_ + first,
                                      bias_ + first, n, narrow, narrow + n, narrow + 2 * n);
      return true;
    }
    return Base::NarrowParameters(item, moments, wide, narrow);
  }

 private:
  using Base::layout_;

  double Factor(const Moments& moments, int64_t channels) const {
    const double count = static_cast<double>(channels) * static_cast<double>(layout_.positions);
    return 1 / std::sqrt(moments.m2 / count + epsilon_);
  }

  void Group(const Moments& moments, int64_t first, int64_t size,
             const ChannelParameters& out) const {
    const double factor = Factor(moments, size);
    for (int64_t c = 0; c < size; ++c) {
      out.mean[c] = moments.mean;
      out.scale[c] = factor * scale_[first + c];
      out.bias[c] = bias_[first + c] - RestTimes<T>(moments.rest, out.scale[c]);
    }
  }

  int64_t size_;  // channels of a group
  double epsilon_;
  const double* scale_;
  const double* bias_;
  FloatRange range_;
};

template <typename T>
class GroupNorm final : public Kernel {
 public:
  GroupNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        groups_(attributes.Int("num_groups")),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        order_(attributes) {
    if (groups_ < 1) attributes.Fail("num_groups", std::to_string(groups_), "at least 1");
  }

  void CheckShapes(const InputShapes& shapes) const override {
    const int64_t channels = CheckedChannels(shapes, order_);
    CheckGroups(shapes, channels, groups_);
    CheckVectors(shapes, order_, 1, 2);
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    const ChannelVectors<T> vectors(run, shape.channels, 1, 2);
    Execute(GroupPlan<T>(ChannelLayout::Groups(shape, groups_), shape.channels / groups_, epsilon_,
                         vectors[1], vectors[2], Stage<T>(run, level_), run.Output<T>(),
                         activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  int64_t groups_;
  double epsilon_;
  Activation activation_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {"GroupNorm",
                                  {"X", "scale", "bias"},
                                  {"Y"},
                                  {"num_groups", "epsilon", "activation", "channels_last"},
                                  CreateFor<GroupNorm>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition)),
    kSkip(SkipForm(kDefinition)), kBlockedSkip(BlockedForm(SkipForm(kDefinition)));

}  // namespace
}  // namespace onnxnorm
