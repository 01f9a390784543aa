// Loops over ONNX Runtime's own thread pool.
#pragma once

#include <cstdint>

#include "abi/onnxruntime_abi.h"
#include "core/error.h"

namespace onnxnorm {

/// The pool of the session that a kernel runs in.
class Parallel {
 public:
  Parallel(const abi::Api* api, const OrtKernelContext* context) : api_(api), context_(context) {}

  /// Calls body(i) for i in [0, total), from several threads at once and in any order. `body` must
  /// not throw.
  template <typename Body>
  void For(int64_t total, const Body& body) const {
    if (total == 1) return body(int64_t{0});
    const auto call = [](void* data, size_t i) noexcept {
      (*static_cast<const Body*>(data))(static_cast<int64_t>(i));
    };
    ThrowIfError(api_, api_->KernelContext_ParallelFor(context_, call, static_cast<size_t>(total),
                                                       0, const_cast<Body*>(&body)));
  }

 private:
  const abi::Api* api_;
  const OrtKernelContext* context_;
};

}  // namespace onnxnorm
