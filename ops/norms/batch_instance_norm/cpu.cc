// Batch-instance normalization (Nam and Kim 2018, arXiv:1805.07925), with running batch statistics:
//   y = activation((rho_c * x_batch + (1 - rho_c) * x_instance) * scale_c + bias_c)
//   x_batch = (x - running_mean_c) / sqrt(running_var_c + epsilon)
//   x_instance = (x - mean) / sqrt(var + epsilon), with the biased variance over the positions
// Both branches are affine in x, so that one multiplication and addition for each element serves.
#include <cmath>
#include <limits>

#include "core/channel_plan.h"
#include "core/channel_shape.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

/// An item is a few channels of a sample.
template <typename T>
class BatchInstancePlan final : public ChannelPlan<T> {
  using Base = ChannelPlan<T>;

 public:
  BatchInstancePlan(const ChannelLayout& layout, double epsilon, const ChannelVectors<T>& vectors,
                    const Stage<T>& stage, T* y, Activation activation, const simd::Level& level)
      : Base(layout, stage, y, {EndingOf(activation)}, epsilon < kTinyEpsilon, level),
        epsilon_(epsilon),
        in_(vectors) {}

 protected:
  void Parameters(int64_t item, const Moments* moments,
                  const ChannelParameters& out) const noexcept override {
    const int64_t first = this->layout_.FirstChannel(item), n = this->layout_.channels;
    const double* scale = in_[1] + first;
    const double* bias = in_[2] + first;
    const double* rho = in_[3] + first;
    const double* running_mean = in_[4] + first;
    const double* batch_factor = in_[5] + first;
    const double positions = static_cast<double>(this->layout_.positions);
    for (int64_t c = 0; c < n; ++c) out.mean[c] = moments[c].m2 / positions;
    this->kernels_.parameters.inverse_sqrt(out.mean, epsilon_, n, out.bias);
    for (int64_t c = 0; c < n; ++c) {
      const Moments& m = moments[c];
      const double batch = rho[c] * batch_factor[c];
      const double instance = (1 - rho[c]) * out.bias[c];
      if (std::isinf(batch_factor[c])) {
        Infinite(rho[c], scale[c], bias[c], running_mean[c], instance, c, out);
        continue;
      }
      // Around the instance's mean: x - running_mean = (x - mean) + (mean - running_mean).
      const double to_batch = (m.mean - running_mean[c]) + m.rest;
      out.mean[c] = m.mean;
      out.scale[c] = (batch + instance) * scale[c];
      out.bias[c] = bias[c] + batch * to_batch * scale[c] - RestTimes<T>(m.rest, out.scale[c]);
    }
  }

 private:
  // No running variance and no epsilon: infinite wherever x is not the running mean, unless the
  // instance branch is NaN for want of a variance. Without a weight it is NaN: 0 * infinity.
  static void Infinite(double rho, double scale, double bias, double running_mean, double instance,
                       int64_t c, const ChannelParameters& out) {
    const double batch = rho * std::numeric_limits<double>::infinity();
    out.mean[c] = running_mean;
    out.scale[c] = scale * (std::isfinite(instance) ? batch : batch - batch);
    out.bias[c] = bias;
  }

  double epsilon_;
  const ChannelVectors<T>& in_;
};

template <typename T>
class BatchInstanceNorm final : public Kernel {
 public:
  BatchInstanceNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()),
        order_(attributes) {}

  void CheckShapes(const InputShapes& shapes) const override {
    CheckVectors(shapes, order_, 1, kInputs - 1);
  }

  void Compute(const Run& run) const override {
    const ChannelShape shape(run.shapes[0], order_);
    ChannelVectors<T> vectors(run, shape.channels, 1, kInputs - 1);
    // In place of the running variance, the factor of the batch branch.
    simd::Get<T>(level_).parameters.inverse_sqrt(vectors[kInputs - 1], epsilon_, shape.channels,
                                                 vectors.Writable(kInputs - 1));
    Execute(BatchInstancePlan<T>(ChannelLayout::Channels(shape), epsilon_, vectors,
                                 Stage<T>(run, level_), run.Output<T>(), activation_, level_),
            run.parallel, run.scratch);
  }

 private:
  static constexpr size_t kInputs = 6;

  const simd::Level& level_;
  double epsilon_;
  Activation activation_;
  ChannelOrder order_;
};

const OpDefinition kDefinition = {"BatchInstanceNorm",
                                  {"X", "scale", "bias", "rho", "running_mean", "running_var"},
                                  {"Y"},
                                  {"epsilon", "activation", "channels_last"},
                                  CreateFor<BatchInstanceNorm>};

const RegisterOp kPlain(kDefinition), kBlocked(BlockedForm(kDefinition)),
    kSkip(SkipForm(kDefinition)), kBlockedSkip(BlockedForm(SkipForm(kDefinition)));

}  // namespace
}  // namespace onnxnorm
