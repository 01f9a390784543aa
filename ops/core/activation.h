// The activations that can follow a norm, and what else can end one.
#pragma once

namespace onnxnorm {

/// y = activation(norm(x)); kGelu is the exact (erf) form.
enum class Activation : int { kNone = 0, kRelu = 1, kSilu = 2, kGelu = 3 };

inline constexpr int kActivationCount = 4;

/// How a channel-wise norm ends, with one more parameter t for each channel where it needs one:
/// an activation; an activation and max(., t); or, in place of the input itself, x * sigmoid(t * x)
/// (EvoNorm-S0). The first four are the activations.
enum class Ending : int { kFloor = 4, kGate = 8 };

inline constexpr int kEndingCount = 9;

/// The activation, alone or under a floor.
constexpr int EndingOf(Activation activation, bool floor = false) {
  return static_cast<int>(activation) + (floor ? static_cast<int>(Ending::kFloor) : 0);
}

}  // namespace onnxnorm
