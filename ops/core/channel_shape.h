// The shape of a channel-wise norm's input: (N, C, positions...) or (N, positions..., C).
#pragma once

#include "core/op.h"

namespace onnxnorm {

/// Dimensions of a tensor that is not empty.
struct ChannelShape {
  int64_t samples;
  int64_t channels;
  int64_t positions;

  ChannelShape(const Shape& shape, bool channels_last)
      : samples(shape[0]),
        channels(shape[channels_last ? shape.rank() - 1 : 1]),
        positions(channels_last ? shape.Product(1, shape.rank() - 1)
                                : shape.Product(2, shape.rank())) {}
};

/// Checks X's rank; its channels, or -1 if they are not known.
inline int64_t CheckedChannels(const InputShapes& shapes, bool channels_last) {
  shapes.RequireRank(0, 2, channels_last ? "(N, ..., C)" : "(N, C, ...)");
  if (!shapes[0].known()) return -1;
  return shapes[0][channels_last ? shapes[0].rank() - 1 : 1];
}

/// "C of X, with shape (1, 2, 3)": what a vector's length must be.
inline std::string ChannelsMeaning(const InputShapes& shapes) {
  return "the channels of X, which has shape " + shapes[0].ToString();
}

/// A parameter vector as doubles.
template <typename T>
void ToDoubles(const T* values, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToDouble(values[i]);
}

}  // namespace onnxnorm
