// Switchable normalization (Luo et al. 2018, arXiv:1806.10779), with softmaxed weights in the order
// instance, layer, batch:
//   mean = mw . (mean_in, mean_ln, mean_bn), var = vw . (var_in, var_ln, var_bn)
//   y = activation((x - mean) / sqrt(var + epsilon) * scale_c + bias_c)
// As in the authors' code, var_in is unbiased and var_ln is built from the instance statistics.
// Without positions (rank 2) there is no instance axis: var_in is 0 and var_ln is the unbiased
// variance over the channels.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// The inputs other than X, as doubles.
struct SwitchableInputs {
  const double* scale;
  const double* bias;
  const double* mean_weight;
  const double* var_weight;
  const double* running_mean;
  const double* running_var;
};

/// How far three weights' sum is from 1: small, but it meets the whole mean of the data.
double Slack(const double* weights) {
  double rest1, rest2;
  const double sum = TwoSum(TwoSum(weights[0], weights[1], &rest1), weights[2], &rest2);
  return (sum - 1) + (rest1 + rest2);
}

/// An item is a sample.
template <typename T>
class SwitchablePlan final : public ChannelPlan<T> {
  using Base = ChannelPlan<T>;

 public:
  SwitchablePlan(const ChannelLayout& layout, bool rank2, double epsilon,
                 const SwitchableInputs& inputs, const Stage<T>& stage, T* y, Activation activation,
                 const simd::Level& level)
      : Base(layout, stage, y, {EndingOf(activation)}, epsilon < kTinyEpsilon, level),
        rank2_(rank2),
        epsilon_(epsilon),
        in_(inputs) {}

 protected:
  void Parameters(int64_t, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t n = this->layout_.channels;
    const double channels = static_cast<double>(n);
    const double positions = static_cast<double>(this->layout_.positions);
    // One position: 0 / 0, which is NaN, as in PyTorch.
    const double unbias = rank2_ ? 0 : 1 / (positions - 1);
    double var_sum = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double m2 = moments[c].m2;
      const double var = positions > 1 ? m2 * unbias : rank2_ ? 0 : m2 / (positions - 1);
      out.scale[c] = var;
      var_sum += var;
    }
    // All means are taken relative to the layer's, so that a mean far larger than the spread
    // cancels nowhere.
    const Moments layer = MergeEqual(moments, n, positions);
    double between = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double from_layer = (moments[c].mean - layer.mean) + (moments[c].rest - layer.rest);
      out.mean[c] = from_layer;
      between += from_layer * from_layer;
    }
    const double layer_var = rank2_ ? between / (channels - 1) : (var_sum + between) / channels;
    const double* mw = in_.mean_weight;
    const double* vw = in_.var_weight;
    const double layer_part = vw[1] * layer_var;
    const double slack_mean = Slack(mw) * layer.mean;
    for (int64_t c = 0; c < n; ++c) {
      out.scale[c] = vw[0] * out.scale[c] + layer_part + vw[2] * in_.running_var[c];
    }
    this->kernels_.parameters.inverse_sqrt(out.scale, epsilon_, n, out.scale);
    for (int64_t c = 0; c < n; ++c) {
      const double batch = (in_.running_mean[c] - layer.mean) - layer.rest;
      const double offset = mw[0] * out.mean[c] + mw[2] * batch + slack_mean + layer.rest;
      double rest;
      out.mean[c] = TwoSum(layer.mean, offset, &rest);
      out.scale[c] *= in_.scale[c];
      out.bias[c] = in_.bias[c] - RestTimes<T>(rest, out.scale[c]);
    }
  }

 private:
  bool rank2_;
  double epsilon_;
  SwitchableInputs in_;
};

template <typename T>
class SwitchableNorm final : public Kernel {
 public:
  SwitchableNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        order_(attributes) {}

  void CheckShapes(const InputShapes& shapes) const override {
    const int64_t channels = CheckedChannels(shapes, order_);
    for (const size_t i : {1, 2, 5, 6}) {
      shapes.RequireVector(i, channels, ChannelsMeaning(shapes));
    }
    for (const size_t i : {3, 4}) {
      shapes.RequireVector(i, 3, "the weights of instance, layer and batch");
    }
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    const bool rank2 = run.shapes[0].rank() == 2;
    const int64_t c = shape.channels;
    const int64_t lengths[] = {c, c, 3, 3, c, c};
    Scratch scratch((4 * static_cast<size_t>(c) + 6) * sizeof(double), run.parameters);
    double* next = reinterpret_cast<double*>(scratch.data());
    const double* values[6];
    for (size_t i = 0; i < 6; ++i) {
      ToDoubles(run.Input<T>(i + 1), lengths[i], next);
      values[i] = next;
      next += lengths[i];
    }
    const SwitchableInputs inputs = {values[0], values[1], values[2],
                                     values[3], values[4], values[5]};
    Execute(SwitchablePlan<T>(ChannelLayout::Samples(shape), rank2, epsilon_, inputs,
                              Stage<T>(run, level_), run.Output<T>(), activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  double epsilon_;
  Activation activation_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {
    "SwitchableNorm",
    {"X", "scale", "bias", "mean_weight", "var_weight", "running_mean", "running_var"},
    {"Y"},
    {"epsilon", "activation", "channels_last"},
    CreateFor<SwitchableNorm>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition)),
    kSkip(SkipForm(kDefinition)), kBlockedSkip(BlockedForm(SkipForm(kDefinition)));

}  // namespace
}  // namespace onnxnorm
