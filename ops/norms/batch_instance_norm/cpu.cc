// Batch-instance normalization (Nam and Kim 2018, arXiv:1805.07925), with running batch statistics:
//   y = activation((rho_c * x_batch + (1 - rho_c) * x_instance) * scale_c + bias_c)
//   x_batch = (x - running_mean_c) / sqrt(running_var_c + epsilon)
//   x_instance = (x - mean) / sqrt(var + epsilon), with the biased variance over the positions
// Both branches are affine in x, so that one multiplication and addition for each element serves.
#include <cmath>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// The inputs other than X, as doubles.
struct BatchInstanceInputs {
  const double* scale;
  const double* bias;
  const double* rho;
  const double* running_mean;
  const double* running_var;
};

/// An item is a sample.
template <typename T>
class BatchInstancePlan final : public ChannelPlan<T> {
 public:
  BatchInstancePlan(const ChannelLayout& layout, double epsilon, const BatchInstanceInputs& inputs,
                    const T* x, T* y, Activation activation, const simd::Level& level)
      : ChannelPlan<T>(layout, x, y, activation, epsilon < kTinyEpsilon, level),
        channels_(layout.channels),
        positions_(static_cast<double>(layout.positions)),
        epsilon_(epsilon),
        in_(inputs) {}

  void Parameters(int64_t, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    for (int64_t c = 0; c < channels_; ++c) {
      const Moments& m = moments[c];
      const double batch = in_.rho[c] / std::sqrt(in_.running_var[c] + epsilon_);
      const double instance = (1 - in_.rho[c]) / std::sqrt(m.m2 / positions_ + epsilon_);
      if (std::isinf(batch)) {
        // No running variance and no epsilon: infinite wherever x is not the running mean, unless
        // the instance branch is NaN for want of a variance.
        out.mean[c] = in_.running_mean[c];
        out.scale[c] = in_.scale[c] * (std::isfinite(instance) ? batch : batch - batch);
        out.bias[c] = in_.bias[c];
        continue;
      }
      // Around the instance's mean: x - running_mean = (x - mean) + (mean - running_mean).
      const double to_batch = (m.mean - in_.running_mean[c]) + m.rest;
      out.mean[c] = m.mean;
      out.scale[c] = (batch + instance) * in_.scale[c];
      out.bias[c] = in_.bias[c] + batch * to_batch * in_.scale[c] - m.rest * out.scale[c];
    }
  }

 private:
  int64_t channels_;
  double positions_;
  double epsilon_;
  BatchInstanceInputs in_;
};

template <typename T>
class BatchInstanceNorm final : public Kernel {
 public:
  BatchInstanceNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        channels_last_(attributes.Flag("channels_last")) {}

  void CheckShapes(const InputShapes& shapes) const override {
    const int64_t channels = CheckedChannels(shapes, channels_last_);
    for (size_t i = 1; i < kInputs; ++i) {
      shapes.RequireVector(i, channels, ChannelsMeaning(shapes));
    }
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], channels_last_);
    const ChannelLayout layout = {shape.samples, shape.channels, shape.positions,
                                  channels_last_ && shape.positions > 1, false};
    const size_t channels = static_cast<size_t>(shape.channels);
    Scratch scratch((kInputs - 1) * channels * sizeof(double));
    double* first = reinterpret_cast<double*>(scratch.data());
    for (size_t i = 1; i < kInputs; ++i) {
      ToDoubles(run.Input<T>(i), shape.channels, first + (i - 1) * channels);
    }
    const auto values = [=](size_t i) { return first + (i - 1) * channels; };
    const BatchInstanceInputs inputs = {values(1), values(2), values(3), values(4), values(5)};
    Execute(BatchInstancePlan<T>(layout, epsilon_, inputs, run.Input<T>(0), run.Output<T>(),
                                 activation_, level_),
            run.parallel);
  }

 private:
  static constexpr size_t kInputs = 6;

  const simd::Level& level_;
  double epsilon_;
  Activation activation_;
  bool channels_last_;
};

const RegisterOp kRegister({"BatchInstanceNorm",
                            {"X", "scale", "bias", "rho", "running_mean", "running_var"},
                            {"Y"},
                            {"epsilon", "activation", "channels_last"},
                            CreateFor<BatchInstanceNorm>});

}  // namespace
}  // namespace onnxnorm
