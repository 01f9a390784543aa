// The shape of a channel-wise norm's input, and where its channels lie: (N, C, positions...),
// (N, positions..., C), or in blocks.
#pragma once

#include "core/op.h"
#include "core/scratch.h"

namespace onnxnorm {

/// Where the channels of X lie: the attributes `channels_last` and, in blocked forms, `block`.
class ChannelOrder {
 public:
  explicit ChannelOrder(const Attributes& attributes)
      : last_(attributes.Flag("channels_last")),
        block_(attributes.blocked() ? attributes.Int("block") : 0) {
    if (!attributes.blocked()) return;
    if (block_ < 1) attributes.Fail("block", std::to_string(block_), "at least 1");
    if (last_) attributes.Fail("channels_last", "1", "0, since the channels lie in blocks");
  }

  bool last() const { return last_; }
  /// Channels of a block; 0 if there are none.
  int64_t block() const { return block_; }
  /// The axis of X that counts channels.
  int64_t Axis(const Shape& shape) const { return last_ ? shape.rank() - 1 : 1; }

 private:
  bool last_;
  int64_t block_;
};

/// Dimensions of a tensor that is not empty.
struct ChannelShape {
  int64_t samples;
  int64_t channels;
  int64_t positions;
  /// 0 if the positions of a channel are contiguous; else a position's values of that many channels
  /// are.
  int64_t block;

  ChannelShape(const Shape& shape, const ChannelOrder& order)
      : samples(shape[0]),
        channels(shape[order.Axis(shape)]),
        positions(order.last() ? shape.Product(1, shape.rank() - 1)
                               : shape.Product(2, shape.rank())),
        block(order.last() ? channels : order.block()) {
    if (positions == 1) block = 0;  // then all orders are the same
  }
};

/// Checks X's rank and blocks; its channels, or -1 if they are not known.
inline int64_t CheckedChannels(const InputShapes& shapes, const ChannelOrder& order) {
  shapes.RequireRank(0, 2, order.last() ? "(N, ..., C)" : "(N, C, ...)");
  if (!shapes[0].known()) return -1;
  const int64_t channels = shapes[0][order.Axis(shapes[0])];
  if (channels >= 0 && order.block() > 0 && channels % order.block() != 0) {
    shapes.FailAttribute("block", std::to_string(order.block()),
                         "it must divide the " + std::to_string(channels) +
                             " channels of X, which has shape " + shapes[0].ToString());
  }
  return channels;
}

/// "C of X, with shape (1, 2, 3)": what a vector's length must be.
inline std::string ChannelsMeaning(const InputShapes& shapes) {
  return "the channels of X, which has shape " + shapes[0].ToString();
}

/// Checks X's rank and that inputs [first, last] have a value for each channel; the channels, or -1
/// if they are not known.
inline int64_t CheckVectors(const InputShapes& shapes, const ChannelOrder& order, size_t first,
                            size_t last) {
  const int64_t channels = CheckedChannels(shapes, order);
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
  double* Writable(size_t i) { return values() + (i - first_) * channels_; }

 private:
  double* values() const { return reinterpret_cast<double*>(scratch_.data()); }

  size_t first_, channels_;
  mutable Scratch scratch_;
};

}  // namespace onnxnorm
