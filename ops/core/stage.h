// What a norm reads: its input, or something made of it on the way.
#pragma once

#include "core/op.h"
#include "simd/dispatch.h"

namespace onnxnorm {

/// The source of a norm: X itself; X + skip, which goes to the output `sum`; or an activation of X.
/// The latter two are made piece by piece just before the statistics read them, and lie in `sum`
/// or, if nobody reads that, in Y until the result takes their place.
template <typename T>
class Stage {
 public:
  Stage(const Run& run, const simd::Level& level, Activation activation = Activation::kNone)
      : x_(run.Input<T>(0)),
        skip_(static_cast<const T*>(run.skip)),
        kernels_(simd::Get<T>(level)),
        activation_(static_cast<int>(activation)) {
    if (skip_ != nullptr || activation != Activation::kNone) {
      to_ = static_cast<T*>(run.sum != nullptr ? run.sum : run.output);
    }
  }

  /// Whether there is something to make.
  bool active() const { return to_ != nullptr; }
  /// What statistics and results are computed from.
  const T* source() const { return to_ != nullptr ? to_ : x_; }

  /// Makes elements [offset, offset + n).
  void Make(int64_t offset, int64_t n) const {
    if (skip_ != nullptr) {
      kernels_.add(x_ + offset, skip_ + offset, to_ + offset, n);
    } else if (to_ != nullptr) {
      kernels_.activate[activation_](x_ + offset, to_ + offset, n);
    }
  }
  /// Makes `rows` pieces of n elements that are `stride` apart.
  void MakeRows(int64_t offset, int64_t rows, int64_t stride, int64_t n) const {
    if (to_ == nullptr) return;
    if (stride == n) return Make(offset, rows * n);
    for (int64_t r = 0; r < rows; ++r) Make(offset + r * stride, n);
  }

 private:
  const T* x_;
  const T* skip_;
  T* to_ = nullptr;
  const simd::Kernels<T>& kernels_;
  int activation_;
};

}  // namespace onnxnorm
