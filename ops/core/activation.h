// The activations that can follow a norm.
#pragma once

namespace onnxnorm {

/// y = activation(norm(x)); kGelu is the exact (erf) form.
enum class Activation : int { kNone = 0, kRelu = 1, kSilu = 2, kGelu = 3 };

inline constexpr int kActivationCount = 4;

}  // namespace onnxnorm
