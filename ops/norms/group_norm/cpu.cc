// Group normalization (Wu and He 2018, arXiv:1803.08494):
//   y = activation((x - mean_g) / sqrt(var_g + epsilon) * scale_c + bias_c)
// with mean and biased variance over the channels of group g and all positions.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a group (channels first), or a sample (channels last).
template <typename T>
class GroupPlan final : public ChannelPlan<T> {
 public:
  GroupPlan(const ChannelLayout& layout, int64_t groups, double epsilon, const double* scale,
            const double* bias, const T* x, T* y, Activation activation, const simd::Level& level)
      : ChannelPlan<T>(layout, x, y, activation, epsilon < kTinyEpsilon, level),
        layout_(layout),
        groups_(groups),
        epsilon_(epsilon),
        scale_(scale),
        bias_(bias) {}

  void Parameters(int64_t item, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    if (!layout_.merged) {
      const int64_t size = layout_.channels / groups_;
      for (int64_t g = 0; g < groups_; ++g) {
        const Moments group =
            MergeEqual(moments + g * size, size, static_cast<double>(layout_.positions));
        Group(group, g * size, size,
              {out.mean + g * size, out.scale + g * size, out.bias + g * size});
      }
    } else {
      Group(moments[0], item % groups_ * layout_.channels, layout_.channels, out);
    }
  }

 private:
  void Group(const Moments& moments, int64_t first, int64_t size,
             const ChannelParameters& out) const {
    const double count = static_cast<double>(size) * static_cast<double>(layout_.positions);
    const double rstd = 1 / std::sqrt(moments.m2 / count + epsilon_);
    for (int64_t c = 0; c < size; ++c) {
      out.mean[c] = moments.mean;
      out.scale[c] = rstd * scale_[first + c];
      out.bias[c] = bias_[first + c] - moments.rest * out.scale[c];
    }
  }

  ChannelLayout layout_;
  int64_t groups_;
  double epsilon_;
  const double* scale_;
  const double* bias_;
};

template <typename T>
class GroupNorm final : public Kernel {
 public:
  GroupNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        groups_(attributes.Int("num_groups")),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        channels_last_(attributes.Flag("channels_last")) {
    if (groups_ < 1) attributes.Fail("num_groups", std::to_string(groups_), "at least 1");
  }

  void CheckShapes(const InputShapes& shapes) const override {
    const int64_t channels = CheckedChannels(shapes, channels_last_);
    if (channels >= 0 && channels % groups_ != 0) {
      shapes.FailAttribute("num_groups", std::to_string(groups_),
                           "it must divide the " + std::to_string(channels) +
                               " channels of X, which has shape " + shapes[0].ToString());
    }
    shapes.RequireVector(1, channels, ChannelsMeaning(shapes));
    shapes.RequireVector(2, channels, ChannelsMeaning(shapes));
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], channels_last_);
    // Channels are contiguous in both layouts if each has one position.
    const bool by_sample = channels_last_ && shape.positions > 1;
    const ChannelLayout layout = {by_sample ? shape.samples : shape.samples * groups_,
                                  by_sample ? shape.channels : shape.channels / groups_,
                                  shape.positions, by_sample, !by_sample};
    Scratch scratch(2 * static_cast<size_t>(shape.channels) * sizeof(double));
    double* scale = reinterpret_cast<double*>(scratch.data());
    double* bias = scale + shape.channels;
    ToDoubles(run.Input<T>(1), shape.channels, scale);
    ToDoubles(run.Input<T>(2), shape.channels, bias);
    Execute(GroupPlan<T>(layout, groups_, epsilon_, scale, bias, run.Input<T>(0), run.Output<T>(),
                         activation_, level_),
            run.parallel);
  }

 private:
  const simd::Level& level_;
  int64_t groups_;
  double epsilon_;
  Activation activation_;
  bool channels_last_;
};

const RegisterOp kRegister({"GroupNorm",
                            {"X", "scale", "bias"},
                            {"Y"},
                            {"num_groups", "epsilon", "activation", "channels_last"},
                            CreateFor<GroupNorm>});

}  // namespace
}  // namespace onnxnorm
