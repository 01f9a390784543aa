// The attribute `axes` of norms over any set of axes, and the shapes that it asks for.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/op.h"

namespace onnxnorm {

/// The axes that a norm reduces, as they are written on the node.
class ReducedAxes {
 public:
  /// Throws unless there is at least one axis and none stands there twice.
  explicit ReducedAxes(const Attributes& attributes) : axes_(attributes.Ints("axes")) {
    std::vector<int64_t> sorted = axes_;
    std::sort(sorted.begin(), sorted.end());
    if (sorted.empty() || std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      attributes.Fail("axes", ToString(), "at least one axis, each once");
    }
  }

  /// Which of X's axes are reduced. Throws if X has not all of them, or two are the same.
  std::vector<bool> Of(const InputShapes& shapes) const {
    const int64_t rank = shapes[0].rank();
    std::vector<bool> reduced(static_cast<size_t>(rank));
    for (const int64_t axis : axes_) {
      if (axis < -rank || axis >= rank) {
        shapes.FailAttribute("axes", ToString(),
                             "X has shape " + shapes[0].ToString() + ", so each must be from " +
                                 std::to_string(-rank) + " to " + std::to_string(rank - 1));
      }
      const size_t i = static_cast<size_t>(axis < 0 ? axis + rank : axis);
      if (reduced[i]) {
        shapes.FailAttribute(
            "axes", ToString(),
            "each axis of X, which has shape " + shapes[0].ToString() + ", must stand there once");
      }
      reduced[i] = true;
    }
    return reduced;
  }

  /// Throws unless X has the axes and inputs [1, inputs) have their sizes, as far as shapes are
  /// known.
  void Check(const InputShapes& shapes, size_t inputs) const {
    shapes.RequireRank(0, 1, "a scalar has no axes");
    if (!shapes[0].known()) return;
    const std::vector<bool> reduced = Of(shapes);
    for (size_t i = 1; i < inputs; ++i) CheckSizes(shapes, i, reduced);
  }

 private:
  void CheckSizes(const InputShapes& shapes, size_t input, const std::vector<bool>& reduced) const {
    const Shape& shape = shapes[input];
    if (!shape.known()) return;
    int64_t next = 0;
    bool agrees = true;
    std::string right = "(";
    for (int64_t i = 0; i < shapes[0].rank(); ++i) {
      if (!reduced[static_cast<size_t>(i)]) continue;
      const int64_t size = shapes[0][i];
      right += (next > 0 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
      if (next < shape.rank()) {
        agrees = agrees && (size < 0 || shape[next] < 0 || shape[next] == size);
      }
      ++next;
    }
    if (agrees && next == shape.rank()) return;
    if (next != shape.rank()) {
      shapes.Fail(input, "its rank must be " + std::to_string(next) +
                             ", one axis for each of axes " + ToString());
    }
    shapes.Fail(input, "it must be " + right + (next == 1 ? ",)" : ")") + ", the sizes of axes " +
                           ToString() + " of X, which has shape " + shapes[0].ToString());
  }

  std::string ToString() const {
    std::string text = "[";
    for (size_t i = 0; i < axes_.size(); ++i) {
      text += (i > 0 ? ", " : "") + std::to_string(axes_[i]);
    }
    return text + "]";
  }

  std::vector<int64_t> axes_;
};

}  // namespace onnxnorm
