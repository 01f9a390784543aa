#include "core/shape.h"

namespace onnxnorm {

std::string Shape::ToString() const {
  if (!known_) return "(unknown)";
  std::string text = "(";
  for (int64_t i = 0; i < rank(); ++i) {
    if (i > 0) text += ", ";
    text += (*this)[i] < 0 ? "?" : std::to_string((*this)[i]);
  }
  return text + (rank() == 1 ? ",)" : ")");
}

}  // namespace onnxnorm
