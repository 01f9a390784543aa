// Global response normalization (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808):
//   z = input_activation(x), g_c = sqrt(sum(z^2)), n_c = g_c / (mean_c(g_c) + epsilon)
//   y = activation(z + scale_c * z * n_c + bias_c)
// with the sum over the positions of each channel.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a sample.
template <typename T>
class GlobalResponsePlan final : public ChannelPlan<T> {
 public:
  GlobalResponsePlan(const ChannelLayout& layout, double epsilon, const ChannelVectors<T>& vectors,
                     const Stage<T>& stage, T* y, Activation activation, const simd::Level& level)
      : ChannelPlan<T>(layout, stage, y, {EndingOf(activation)}, epsilon * epsilon < kTinyEpsilon,
                       level),
        epsilon_(epsilon),
        in_(vectors) {}

 protected:
  void Parameters(int64_t, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t n = this->layout_.channels;
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) {
      out.scale[c] = std::sqrt(moments[c].m2);
      sum += out.scale[c];
    }
    const double divisor = sum / static_cast<double>(n) + epsilon_;
    for (int64_t c = 0; c < n; ++c) {
      out.mean[c] = 0;
      out.scale[c] = 1 + in_[1][c] * (out.scale[c] / divisor);
      out.bias[c] = in_[2][c];
    }
  }

 private:
  double epsilon_;
  const ChannelVectors<T>& in_;
};

template <typename T>
class GlobalResponseNorm final : public Kernel {
 public:
  GlobalResponseNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        epsilon_(attributes.Epsilon()),
        input_activation_(attributes.ReadActivation("input_activation")),
        activation_(attributes.ReadActivation()),
        order_(attributes) {}

  void CheckShapes(const InputShapes& shapes) const override { CheckVectors(shapes, order_, 1, 2); }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    const ChannelVectors<T> vectors(run, shape.channels, 1, 2);
    const auto layout = ChannelLayout::Samples(shape, Statistic::kChannelSquares);
    Execute(
        GlobalResponsePlan<T>(layout, epsilon_, vectors, Stage<T>(run, level_, input_activation_),
                              run.Output<T>(), activation_, level_),
        run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  double epsilon_;
  Activation input_activation_;
  Activation activation_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {"GlobalResponseNorm",
                                  {"X", "scale", "bias"},
                                  {"Y"},
                                  {"epsilon", "input_activation", "activation", "channels_last"},
                                  CreateFor<GlobalResponseNorm>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition));

}  // namespace
}  // namespace onnxnorm
