// Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467):
//   y = activation(x / sqrt(mean(x^2) + epsilon) * scale)
// with the mean over any set of axes, and a scale that has their sizes.
#include <algorithm>

#include "core/axes_plan.h"
#include "core/op.h"

namespace onnxnorm {
namespace {

std::string ListText(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  }
  return text + "]";
}

template <typename T>
class RMSNorm final : public Kernel {
 public:
  RMSNorm(const Attributes& attributes, const simd::Level& level)
      : level_(level),
        axes_(attributes.Ints("axes")),
        epsilon_(attributes.Epsilon()),
        activation_(attributes.ReadActivation()) {
    std::vector<int64_t> sorted = axes_;
    std::sort(sorted.begin(), sorted.end());
    if (sorted.empty() || std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      attributes.Fail("axes", ListText(axes_), "at least one axis, each once");
    }
  }

  void CheckShapes(const InputShapes& shapes) const override {
    shapes.RequireRank(0, 1, "a scalar has no axes");
    if (!shapes[0].known()) return;
    const std::vector<bool> reduced = Reduced(shapes);
    if (!shapes[1].known()) return;
    int64_t next = 0;
    bool agrees = true;
    std::string right = "(";
    for (int64_t i = 0; i < shapes[0].rank(); ++i) {
      if (!reduced[static_cast<size_t>(i)]) continue;
      const int64_t size = shapes[0][i];
      right += (next > 0 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
      if (next < shapes[1].rank()) {
        agrees = agrees && (size < 0 || shapes[1][next] < 0 || shapes[1][next] == size);
      }
      ++next;
    }
    if (agrees && next == shapes[1].rank()) return;
    if (next != shapes[1].rank()) {
      shapes.Fail(1, "its rank must be " + std::to_string(next) + ", one axis for each of axes " +
                         ListText(axes_));
    }
    shapes.Fail(1, "it must be " + right + (next == 1 ? ",)" : ")") + ", the sizes of axes " +
                       ListText(axes_) + " of X, which has shape " + shapes[0].ToString());
  }

  void Compute(const Run& run) const override {
    const AxesLayout layout(run.shapes[0], Reduced(run.shapes));
    Execute(RmsPlan<T>(layout, epsilon_, run.Input<T>(1), run.Input<T>(0), run.Output<T>(),
                       activation_, level_),
            run.parallel);
  }

 private:
  // Which of X's axes are reduced.
  std::vector<bool> Reduced(const InputShapes& shapes) const {
    const int64_t rank = shapes[0].rank();
    std::vector<bool> reduced(static_cast<size_t>(rank));
    for (const int64_t axis : axes_) {
      if (axis < -rank || axis >= rank) {
        shapes.FailAttribute("axes", ListText(axes_),
                             "X has shape " + shapes[0].ToString() + ", so each must be from " +
                                 std::to_string(-rank) + " to " + std::to_string(rank - 1));
      }
      const size_t i = static_cast<size_t>(axis < 0 ? axis + rank : axis);
      if (reduced[i])
        shapes.FailAttribute(
            "axes", ListText(axes_),
            "each axis of X, which has shape " + shapes[0].ToString() + ", must stand there once");
      reduced[i] = true;
    }
    return reduced;
  }

  const simd::Level& level_;
  std::vector<int64_t> axes_;
  double epsilon_;
  Activation activation_;
};

const RegisterOp kRegister(
    {"RMSNorm", {"X", "scale"}, {"Y"}, {"axes", "epsilon", "activation"}, CreateFor<RMSNorm>});

}  // namespace
}  // namespace onnxnorm
