// Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467):
//   y = activation(x / sqrt(mean(x^2) + epsilon) * scale)
// with the mean over any set of axes, and a scale that has their sizes.
#include <cmath>

#include "core/scaled_plan.h"

namespace onnxnorm {
namespace {

struct RootMeanSquare {
  static double Factor(double squares, double count, double epsilon) {
    return 1 / std::sqrt(squares / count + epsilon);
  }
  static bool Tiny(double epsilon) { return epsilon < kTinyEpsilon; }
};

template <typename T>
using RMSNorm = ScaledNorm<T, RootMeanSquare>;

const OpDefinition kDefinition = {
    "RMSNorm", {"X", "scale"}, {"Y"}, {"axes", "epsilon", "activation"}, CreateFor<RMSNorm>};

const RegisterOp kPlain(kDefinition), kSkip(SkipForm(kDefinition));

}  // namespace
}  // namespace onnxnorm
