// Filter response normalization (Singh and Krishnan 2019, arXiv:1911.09737), with its thresholded
// linear unit:
//   y = max(activation(x / sqrt(mean(x^2) + epsilon) * scale_c + bias_c), tau_c)
// with the mean over the positions of each channel.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a few channels of a sample.
template <typename T>
class FilterResponsePlan final : public ChannelPlan<T> {
 public:
  FilterResponsePlan(const ChannelLayout& layout, double epsilon, const ChannelVectors<T>& vectors,
                     const Stage<T>& stage, T* y, Activation activation, const simd::Level& level)
      : ChannelPlan<T>(layout, stage, y, {EndingOf(activation, true), vectors[3]},
                       epsilon < kTinyEpsilon, level),
        epsilon_(epsilon),
        in_(vectors) {}

 protected:
  void Parameters(int64_t item, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t first = this->layout_.FirstChannel(item), n = this->layout_.channels;
    const double* scale = in_[1] + first;
    const double* bias = in_[2] + first;
    const double* tau = in_[3] + first;
    const double positions = static_cast<double>(this->layout_.positions);
    for (int64_t c = 0; c < n; ++c) out.scale[c] = moments[c].m2 / positions;
    this->kernels_.parameters.inverse_sqrt(out.scale, epsilon_, n, out.scale);
    for (int64_t c = 0; c < n; ++c) {
      out.mean[c] = 0;
      out.scale[c] *= scale[c];
      // The maximum would lose a threshold that is NaN.
      out.bias[c] = std::isnan(tau[c]) ? tau[c] : bias[c];
    }
  }

 private:
  double epsilon_;
  const ChannelVectors<T>& in_;
};

template <typename T>
class FilterResponseNorm final : public Kernel {
 public:
  FilterResponseNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        order_(attributes) {}

  void CheckShapes(const InputShapes& shapes) const override { CheckVectors(shapes, order_, 1, 3); }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    const ChannelVectors<T> vectors(run, shape.channels, 1, 3);
    const auto layout = ChannelLayout::Channels(shape, Statistic::kChannelSquares);
    Execute(FilterResponsePlan<T>(layout, epsilon_, vectors, Stage<T>(run, level_), run.Output<T>(),
                                  activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  const simd::Level& level_;
  double epsilon_;
  Activation activation_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {"FilterResponseNorm",
                                  {"X", "scale", "bias", "tau"},
                                  {"Y"},
                                  {"epsilon", "activation", "channels_last"},
                                  CreateFor<FilterResponseNorm>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition));

}  // namespace
}  // namespace onnxnorm
