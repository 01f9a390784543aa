// L2 normalization (torch.nn.functional.normalize):
//   y = activation(x / max(sqrt(sum(x^2)), epsilon) * scale)
// with the sum over any set of axes, and a scale that has their sizes.
#include <cmath>

#include "core/scaled_plan.h"

namespace onnxnorm {
namespace {

struct Length {
  static double Factor(double squares, double, double epsilon) {
    const double length = std::sqrt(squares);
    return 1 / (length < epsilon ? epsilon : length);  // keeps NaN
  }
  static bool Tiny(double epsilon) { return epsilon * epsilon < kTinyEpsilon; }
};

template <typename T>
using L2Norm = ScaledNorm<T, Length>;

const RegisterOp kRegister(
    {"L2Norm", {"X", "scale"}, {"Y"}, {"axes", "epsilon", "activation"}, CreateFor<L2Norm>});

}  // namespace
}  // namespace onnxnorm
