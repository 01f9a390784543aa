// Shapes of tensors, known in whole or in part.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace onnxnorm {

/// A tensor's shape. Before a run a dimension may be unknown (negative), and so may the rank.
class Shape {
 public:
  Shape() = default;
  /// A shape of that rank, to be filled through data().
  explicit Shape(size_t rank) : rank_(rank), known_(true) {
    if (rank_ > inline_.size()) heap_.resize(rank_);
  }

  bool known() const { return known_; }
  int64_t rank() const { return static_cast<int64_t>(rank_); }
  int64_t* data() { return rank_ > inline_.size() ? heap_.data() : inline_.data(); }
  const int64_t* data() const { return rank_ > inline_.size() ? heap_.data() : inline_.data(); }
  int64_t operator[](int64_t i) const { return data()[i]; }

  /// Whether the tensor has no elements. Only a shape that is not empty may be multiplied out: the
  /// product of the others may overflow.
  bool empty() const {
    for (int64_t i = 0; i < rank(); ++i) {
      if ((*this)[i] == 0) return true;
    }
    return false;
  }

  /// Product of dimensions [first, last) of a shape that is not empty.
  int64_t Product(int64_t first, int64_t last) const {
    int64_t product = 1;
    for (int64_t i = first; i < last; ++i) product *= (*this)[i];
    return product;
  }

  /// For messages: "(2, ?, 7)".
  std::string ToString() const;

 private:
  size_t rank_ = 0;
  bool known_ = false;
  std::array<int64_t, 8> inline_{};
  std::vector<int64_t> heap_;
};

}  // namespace onnxnorm
