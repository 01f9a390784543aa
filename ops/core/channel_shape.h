// The shape of a channel-wise norm's input: (N, C, positions...) or (N, positions..., C).
#pragma once

#include "core/op.h"
#include "core/scratch.h"

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

/// Checks X's rank and that inputs [first, last] have a value for each channel; the channels, or -1
/// if they are not known.
inline int64_t CheckVectors(const InputShapes& shapes, bool channels_last, size_t first,
                            size_t last) {
  const int64_t channels = CheckedChannels(shapes, channels_last);
  for (size_t i = first; i <= last; ++i) {
    shapes.RequireVector(i, channels, ChannelsMeaning(shapes));
  }
  return channels;
}

/// Checks that the groups divide the channels, if these are known.
inline void CheckGroups(const InputShapes& shapes, int64_t channels, int64_t groups) {
  if (channels < 0 || channels % groups == 0) return;
  shapes.FailAttribute("num_groups", std::to_string(groups),
                       "it must divide the " + std::to_string(channels) +
                           " channels of X, which has shape " + shapes[0].ToString());
}

/// A parameter vector as doubles.
template <typename T>
void ToDoubles(const T* values, int64_t count, double* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToDouble(values[i]);
}

/// Inputs [first, last] of a run, vectors of `channels` elements each, as doubles.
template <typename T>
class ChannelVectors {
 public:
  /// Throws std::bad_alloc.
  ChannelVectors(const Run& run, int64_t channels, size_t first, size_t last)
      : first_(first),
        channels_(static_cast<size_t>(channels)),
        scratch_((last - first + 1) * channels_ * sizeof(double), run.parameters) {
    for (size_t i = first; i <= last; ++i) {
      ToDoubles(run.Input<T>(i), channels, values() + (i - first) * channels_);
    }
  }
  /// Input i.
  const double* operator[](size_t i) const { return values() + (i - first_) * channels_; }

 private:
  double* values() const { return reinterpret_cast<double*>(scratch_.data()); }

  size_t first_, channels_;
  mutable Scratch scratch_;
};

}  // namespace onnxnorm
