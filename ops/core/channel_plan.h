// The plan of norms with parameters for each channel: group norm, switchable norm, and their
// relatives.
//
// An item is a set of channels of one sample, in one of two layouts:
//   channels first: (channels, positions), the positions of a channel are contiguous;
//   channels last: (positions, channels).
// The plan gathers the moments of each channel (or of the whole item), asks the norm for one (mean,
// scale, bias) for each channel, and applies y = activation((x - mean) * scale + bias).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/moments.h"
#include "core/plan.h"
#include "core/scratch.h"
#include "simd/dispatch.h"

namespace onnxnorm {

/// Where a norm writes the parameters of an item's channels.
struct ChannelParameters {
  double* mean;
  double* scale;
  double* bias;
};

/// What a ChannelPlan needs to know of the tensor.
struct ChannelLayout {
  int64_t items;
  int64_t channels;   // of one item
  int64_t positions;  // of one channel
  bool channels_last;
  bool merged;  // one set of moments for the whole item; channels first only
};

/// The pieces of a channel-wise call that do not depend on the norm.
template <typename T>
class ChannelPlan : public Plan {
 public:
  ChannelPlan(const ChannelLayout& layout, const T* x, T* y, Activation activation, bool tiny,
              const simd::Level& level)
      : layout_(layout),
        x_(x),
        y_(y),
        kernels_(simd::Get<T>(level)),
        activation_(static_cast<int>(activation)),
        tiny_(tiny) {
    items = layout.items;
    item_elements = layout.channels * layout.positions;
    // Measured against a copy: silu and gelu take two to three times as long.
    cost = activation == Activation::kSilu || activation == Activation::kGelu ? 2.5 : 1;
    apply_chunks = (item_elements + kChunkElements - 1) / kChunkElements;
    if (layout.channels_last) {
      // Column sums settle their shifts once in each chunk: longer chunks are cheaper.
      rows_ = std::max<int64_t>(32, 4 * kChunkElements / layout.channels);
      statistics_chunks = (layout.positions + rows_ - 1) / rows_;
      parts_ = statistics_chunks * layout.channels;
      apply_rows_ = std::max<int64_t>(1, kChunkElements / layout.channels);
      apply_chunks = (layout.positions + apply_rows_ - 1) / apply_rows_;
    } else {
      segments_ = layout.merged ? 1 : layout.channels;
      segment_ = item_elements / segments_;
      pieces_ = (segment_ + kChunkElements - 1) / kChunkElements;
      together_ = std::max<int64_t>(1, kChunkElements / segment_);
      statistics_chunks =
          pieces_ > 1 ? segments_ * pieces_ : (segments_ + together_ - 1) / together_;
      parts_ = segments_ * pieces_;
    }
    const size_t channels = static_cast<size_t>(layout.channels);
    parameters_ = CacheLines(static_cast<size_t>(parts_) * sizeof(Moments));
    narrow_ = parameters_ + 3 * channels * sizeof(double);
    flag_ = narrow_ + 3 * channels * sizeof(Compute);
    item_scratch = flag_ + sizeof(bool);
  }

  /// The norm itself: from the item's moments (one, or one for each channel) to the parameters of
  /// its channels.
  virtual void Parameters(int64_t item, const Moments* moments,
                          const ChannelParameters& out) const noexcept = 0;

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    Moments* parts = reinterpret_cast<Moments*>(scratch);
    const T* x = x_ + item * item_elements;
    if (layout_.channels_last) {
      const int64_t first = chunk * rows_;
      kernels_.column_moments(x + first * layout_.channels,
                              std::min(rows_, layout_.positions - first), layout_.channels,
                              layout_.channels, tiny_, parts + chunk * layout_.channels);
    } else if (pieces_ > 1) {
      const int64_t first = (chunk % pieces_) * kChunkElements;
      parts[chunk] = kernels_.moments(x + chunk / pieces_ * segment_ + first,
                                      std::min(kChunkElements, segment_ - first), tiny_);
    } else {
      const int64_t last = std::min(segments_, (chunk + 1) * together_);
      for (int64_t s = chunk * together_; s < last; ++s) {
        parts[s] = segment_ == 1 ? OneElement(ToDouble(x[s]))
                                 : kernels_.moments(x + s * segment_, segment_, tiny_);
      }
    }
  }

  void Finish(int64_t item, std::byte* scratch) const noexcept override {
    Moments* parts = reinterpret_cast<Moments*>(scratch);
    if (layout_.channels_last) {
      MergeParts(parts, layout_.channels, statistics_chunks, 1, layout_.channels, rows_,
                 layout_.positions);
    } else if (pieces_ > 1) {
      MergeParts(parts, segments_, pieces_, pieces_, 1, kChunkElements, segment_);
    }
    const ChannelParameters wide = Wide(scratch);
    Parameters(item, parts, wide);
    if constexpr (!kDouble) {
      *reinterpret_cast<bool*>(scratch + flag_) = Narrow(wide, scratch);
    }
  }

  void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    const ChannelParameters wide = Wide(scratch);
    if constexpr (kDouble) {
      ApplyChunk(kernels_.apply, item, chunk, wide.mean, wide.scale, wide.bias);
    } else if (*reinterpret_cast<bool*>(scratch + flag_)) {
      const Compute* mean = NarrowMean(scratch);
      ApplyChunk(kernels_.apply, item, chunk, mean, mean + layout_.channels,
                 mean + 2 * layout_.channels);
    } else {
      ApplyChunk(simd::GetWide<T>(), item, chunk, wide.mean, wide.scale, wide.bias);
    }
  }

 private:
  using Compute = typename ComputeOf<T>::type;
  static constexpr bool kDouble = sizeof(Compute) == sizeof(double);

  ChannelParameters Wide(std::byte* scratch) const {
    double* first = reinterpret_cast<double*>(scratch + parameters_);
    return {first, first + layout_.channels, first + 2 * layout_.channels};
  }
  Compute* NarrowMean(std::byte* scratch) const {
    return reinterpret_cast<Compute*>(scratch + narrow_);
  }

  // Merges `count` parts of each of `sets` sets into parts[0 .. sets). Part i of set s is at s *
  // set_stride + i * part_stride and stands for `n` elements, the last one for what is left of
  // `total`.
  static void MergeParts(Moments* parts, int64_t sets, int64_t count, int64_t set_stride,
                         int64_t part_stride, int64_t n, int64_t total) {
    for (int64_t s = 0; s < sets; ++s) {
      CountedMoments sum = {};
      for (int64_t i = 0; i < count; ++i) {
        Merge(parts[s * set_stride + i * part_stride],
              static_cast<double>(std::min(n, total - i * n)), &sum);
      }
      parts[s] = sum.moments;
    }
  }

  // Its m2 is 0, or NaN if the element is infinite or NaN.
  static Moments OneElement(double value) { return {value, 0, value - value}; }

  // Writes the parameters as floats, with what a float cannot hold of the mean moved to the bias.
  // False if they, or x - mean, leave the range of float where the result need not.
  bool Narrow(const ChannelParameters& wide, std::byte* scratch) const {
    constexpr double kLargeMean = 1e30, kLargeScale = 1e37;
    constexpr double kSmallScale = std::numeric_limits<float>::min();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    Compute* mean = NarrowMean(scratch);
    Compute* scale = mean + layout_.channels;
    Compute* bias = scale + layout_.channels;
    int64_t misfits = 0;  // counted, not branched on, so that compilers vectorize the loop
    for (int64_t c = 0; c < layout_.channels; ++c) {
      const double abs_m = std::fabs(wide.mean[c]), abs_a = std::fabs(wide.scale[c]);
      misfits += (abs_m > kLargeMean) & (abs_m < kInfinity);
      misfits += (abs_a > kLargeScale) & (abs_a < kInfinity);
      misfits += (abs_a < kSmallScale) & (abs_a > 0);
    }
    for (int64_t c = 0; c < layout_.channels; ++c) {
      const double m = wide.mean[c], a = wide.scale[c];
      const Compute m_narrow = static_cast<Compute>(m);
      const double lost = (static_cast<double>(m_narrow) - m) * a;
      mean[c] = m_narrow;
      scale[c] = static_cast<Compute>(a);
      bias[c] = static_cast<Compute>(wide.bias[c] + (lost == lost ? lost : 0));
    }
    return misfits == 0;
  }

  template <typename Apply, typename C>
  void ApplyChunk(const Apply& apply, int64_t item, int64_t chunk, const C* mean, const C* scale,
                  const C* bias) const {
    const int64_t offset = item * item_elements;
    if (layout_.channels_last) {
      const int64_t first = chunk * apply_rows_;
      const int64_t start = offset + first * layout_.channels;
      apply.rows[activation_](x_ + start, y_ + start,
                              std::min(apply_rows_, layout_.positions - first), layout_.channels,
                              mean, scale, bias);
      return;
    }
    int64_t i = chunk * kChunkElements;
    const int64_t end = std::min(item_elements, i + kChunkElements);
    if (layout_.positions == 1) {  // channels are contiguous in both layouts
      apply.rows[activation_](x_ + offset + i, y_ + offset + i, 1, end - i, mean + i, scale + i,
                              bias + i);
      return;
    }
    while (i < end) {
      const int64_t c = i / layout_.positions;
      const int64_t skip = i % layout_.positions;
      const bool whole = skip == 0 && end - i >= layout_.positions;
      const int64_t planes = whole ? (end - i) / layout_.positions : 1;
      const int64_t size = whole ? layout_.positions : std::min(layout_.positions - skip, end - i);
      apply.planes[activation_](x_ + offset + i, y_ + offset + i, planes, size, mean + c, scale + c,
                                bias + c);
      i += planes * size;
    }
  }

  ChannelLayout layout_;
  const T* x_;
  T* y_;
  const simd::Kernels<T>& kernels_;
  int activation_;
  bool tiny_;
  // Channels last: rows of a chunk.
  int64_t rows_ = 0, apply_rows_ = 0;
  // Channels first: contiguous segments with their own moments, and either the pieces that a
  // segment is cut into, or how many segments are done together.
  int64_t segments_ = 0, segment_ = 0, pieces_ = 1, together_ = 1;
  int64_t parts_ = 0;
  // Offsets in an item's scratch.
  size_t parameters_ = 0, narrow_ = 0, flag_ = 0;
};

}  // namespace onnxnorm
