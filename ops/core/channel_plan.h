// The plan of norms with parameters for each channel: group norm, switchable norm, and their
// relatives.
//
// An item is a set of channels of one sample, in one of two layouts:
//   channels first: (channels, positions), the positions of a channel are contiguous;
//   channels last: (positions, channels), all channels of the sample.
// The plan gathers the moments of each channel (or of the whole item), asks the norm for one (mean,
// scale, bias) for each channel, and applies y = ending((x - mean) * scale + bias).
#pragma once

#include <algorithm>
#include <cmath>

#include "core/channel_shape.h"
#include "core/moments.h"
#include "core/plan.h"
#include "core/scratch.h"
#include "core/stage.h"
#include "simd/dispatch.h"

namespace onnxnorm {

/// Where a norm writes the parameters of an item's channels.
struct ChannelParameters {
  double* mean;
  double* scale;
  double* bias;
};

/// What is measured of an item.
enum class Statistic {
  kChannelMoments,  // the moments of each channel
  kItemMoments,     // one set of moments; channels first only
  kChannelSquares,  // the moments of each channel around 0: m2 is the sum of squares
};

/// What a ChannelPlan needs to know of the tensor.
struct ChannelLayout {
  int64_t items;
  int64_t channels;   // of one item
  int64_t positions;  // of one channel
  bool channels_last;
  Statistic statistic;
  int64_t items_per_sample = 1;

  /// The first of an item's channels, counted in its sample.
  int64_t FirstChannel(int64_t item) const { return item % items_per_sample * channels; }

  /// For norms that look at groups of a sample's channels together: a group (channels first), or a
  /// sample whose channels' moments are merged by the norm (channels last).
  static ChannelLayout Groups(const ChannelShape& shape, bool channels_last, int64_t groups) {
    // Channels are contiguous in both layouts if each has one position.
    if (channels_last && shape.positions > 1) return Samples(shape, true);
    return {shape.samples * groups,  shape.channels / groups,
            shape.positions,         false,
            Statistic::kItemMoments, groups};
  }
  /// For norms that look at all channels of a sample together.
  static ChannelLayout Samples(const ChannelShape& shape, bool channels_last,
                               Statistic statistic = Statistic::kChannelMoments) {
    return {shape.samples, shape.channels, shape.positions, channels_last && shape.positions > 1,
            statistic};
  }
  /// For norms that look at each channel alone: a few channels, so that they are read again while
  /// they are in a cache.
  static ChannelLayout Channels(const ChannelShape& shape, bool channels_last,
                                Statistic statistic = Statistic::kChannelMoments) {
    ChannelLayout layout = Samples(shape, channels_last, statistic);
    if (layout.channels_last) return layout;
    int64_t channels = std::clamp<int64_t>(kItemElements / shape.positions, 1, shape.channels);
    while (shape.channels % channels != 0) ++channels;
    layout.items_per_sample = shape.channels / channels;
    layout.items = shape.samples * layout.items_per_sample;
    layout.channels = channels;
    return layout;
  }

 private:
  static constexpr int64_t kItemElements = 4096;
};

/// How a ChannelPlan ends: see Ending. `t` has a value for each of the sample's channels.
struct ChannelEnding {
  int index;
  const double* t = nullptr;
};

/// Whether float has the range for a mean and for a factor times each of some scales, asked for
/// many groups at once. That it has not is found in a second look.
class FloatRange {
 public:
  FloatRange(const double* scales, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const double size = std::fabs(scales[i]);
      if (size > 0) smallest_ = std::min(smallest_, size);
      largest_ = std::max(largest_, size);
    }
  }
  /// False for what is not finite, too.
  bool Holds(double mean, double factor) const {
    return std::fabs(mean) < 1e30 && factor * largest_ < 1e37 && factor * smallest_ > 1e-37;
  }

 private:
  double smallest_ = 1, largest_ = 1;
};

/// The pieces of a channel-wise call that do not depend on the norm.
template <typename T>
class ChannelPlan : public Plan {
 public:
  using Compute = typename ComputeOf<T>::type;

  ChannelPlan(const ChannelLayout& layout, const Stage<T>& stage, T* y, ChannelEnding ending,
              bool tiny, const simd::Level& level)
      : kernels_(simd::Get<T>(level)),
        layout_(layout),
        stage_(stage),
        x_(stage.source()),
        y_(y),
        ending_(ending),
        tiny_(tiny) {
    items = layout.items;
    item_elements = layout.channels * layout.positions;
    // Measured against a copy: silu and gelu take two to three times as long.
    cost = ending.index % 4 >= 2 || ending.index == static_cast<int>(Ending::kGate) ? 2.5 : 1;
    if (layout.channels_last) {
      PlanChannelsLast();
    } else {
      PlanChannelsFirst();
    }
    const size_t channels = static_cast<size_t>(layout.channels);
    narrow_ = CacheLines(moments_ + static_cast<size_t>(parts_) * sizeof(Moments));
    wide_ = CacheLines(narrow_ + 4 * channels * sizeof(Compute));
    flag_ = wide_ + 3 * channels * sizeof(double);
    item_scratch = flag_ + sizeof(bool);
  }

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    if (layout_.channels_last) return StatisticsOfRows(item, chunk, scratch);
    Moments* parts = reinterpret_cast<Moments*>(scratch + moments_);
    const bool squares = layout_.statistic == Statistic::kChannelSquares;
    const auto measure = squares ? kernels_.segment_squares : kernels_.segment_moments;
    const int64_t offset = item * item_elements;
    if (pieces_ > 1) {
      const int64_t first = (chunk % pieces_) * kChunkElements;
      const int64_t start = offset + chunk / pieces_ * segment_ + first;
      const int64_t size = std::min(kChunkElements, segment_ - first);
      stage_.Make(start, size);
      measure(x_ + start, 1, size, tiny_, parts + chunk);
      return;
    }
    const int64_t s = chunk * together_, count = std::min(segments_ - s, together_);
    const int64_t start = offset + s * segment_;
    stage_.Make(start, count * segment_);
    if (segment_ > 1) return measure(x_ + start, count, segment_, tiny_, parts + s);
    for (int64_t i = 0; i < count; ++i) {
      const double value = ToDouble(x_[start + i]);
      // The m2 of one element is 0, or NaN if the element is infinite or NaN.
      parts[s + i] = squares ? Moments{0, 0, value * value} : Moments{value, 0, value - value};
    }
  }

  void Finish(int64_t item, std::byte* scratch) const noexcept override {
    Moments* moments = reinterpret_cast<Moments*>(scratch + moments_);
    if (layout_.channels_last) {
      MergeRows(scratch, moments);
    } else if (pieces_ > 1) {
      MergePieces(moments);
    }
    Compute* narrow = Narrow(scratch);
    *reinterpret_cast<bool*>(scratch + flag_) =
        NarrowParameters(item, moments, Wide(scratch), narrow);
    if (ending_.t == nullptr) return;
    const double* t = EndingParameters(item);
    for (int64_t c = 0; c < layout_.channels; ++c) {
      narrow[3 * layout_.channels + c] = static_cast<Compute>(t[c]);
    }
  }

  void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    if (*reinterpret_cast<bool*>(scratch + flag_)) {
      const Compute* narrow = Narrow(scratch);
      const int64_t n = layout_.channels;
      ApplyChunk(kernels_.apply, item, chunk, narrow, narrow + n, narrow + 2 * n, narrow + 3 * n);
    } else {
      const ChannelParameters wide = Wide(scratch);
      const double* t = ending_.t == nullptr ? wide.mean : EndingParameters(item);
      ApplyChunk(simd::GetWide<T>(), item, chunk, wide.mean, wide.scale, wide.bias, t);
    }
  }

 protected:
  /// The norm itself: from the item's moments (one, or one for each channel) to the parameters of
  /// its channels.
  virtual void Parameters(int64_t item, const Moments* moments,
                          const ChannelParameters& out) const noexcept = 0;

  /// The parameters as mean, scale and bias in type Compute, n of each. False if that has not the
  /// range; then `wide` holds them.
  virtual bool NarrowParameters(int64_t item, const Moments* moments, const ChannelParameters& wide,
                                Compute* narrow) const noexcept {
    const int64_t n = layout_.channels;
    Parameters(item, moments, wide);
    return kernels_.parameters.narrow(wide.mean, wide.scale, wide.bias, n, narrow, narrow + n,
                                      narrow + 2 * n);
  }

  const simd::Kernels<T>& kernels_;
  const ChannelLayout layout_;

 private:
  void PlanChannelsLast() {
    // Column sums settle their shifts once in each chunk: longer chunks are cheaper.
    rows_ = std::max<int64_t>(32, 4 * kChunkElements / layout_.channels);
    statistics_chunks = (layout_.positions + rows_ - 1) / rows_;
    parts_ = layout_.channels;
    apply_rows_ = std::max<int64_t>(1, kChunkElements / layout_.channels);
    apply_chunks = (layout_.positions + apply_rows_ - 1) / apply_rows_;
    moments_ =
        CacheLines(static_cast<size_t>(3 * statistics_chunks * layout_.channels) * sizeof(double));
  }

  void PlanChannelsFirst() {
    segments_ = layout_.statistic == Statistic::kItemMoments ? 1 : layout_.channels;
    segment_ = item_elements / segments_;
    pieces_ = (segment_ + kChunkElements - 1) / kChunkElements;
    together_ = std::max<int64_t>(1, kChunkElements / segment_);
    statistics_chunks = pieces_ > 1 ? segments_ * pieces_ : (segments_ + together_ - 1) / together_;
    parts_ = segments_ * pieces_;
    apply_chunks = (item_elements + kChunkElements - 1) / kChunkElements;
  }

  ChannelParameters Wide(std::byte* scratch) const {
    double* first = reinterpret_cast<double*>(scratch + wide_);
    return {first, first + layout_.channels, first + 2 * layout_.channels};
  }
  Compute* Narrow(std::byte* scratch) const {
    return reinterpret_cast<Compute*>(scratch + narrow_);
  }
  const double* EndingParameters(int64_t item) const {
    return ending_.t + layout_.FirstChannel(item);
  }

  // The moments of each channel over the rows of a chunk.
  MomentColumns Columns(std::byte* scratch, int64_t chunk) const {
    double* first = reinterpret_cast<double*>(scratch) + 3 * chunk * layout_.channels;
    return {first, first + layout_.channels, first + 2 * layout_.channels};
  }

  void StatisticsOfRows(int64_t item, int64_t chunk, std::byte* scratch) const {
    const int64_t n = layout_.channels, first = chunk * rows_;
    const int64_t start = item * item_elements + first * n;
    const int64_t rows = std::min(rows_, layout_.positions - first);
    const MomentColumns out = Columns(scratch, chunk);
    stage_.Make(start, rows * n);
    if (layout_.statistic != Statistic::kChannelSquares) {
      return kernels_.column_moments(x_ + start, rows, n, n, tiny_, out);
    }
    std::fill_n(out.mean, 3 * n, 0.0);
    kernels_.column_squares(x_ + start, rows, n, n, tiny_, out.m2);
  }

  void MergeRows(std::byte* scratch, Moments* moments) const {
    const MomentColumns sum = Columns(scratch, 0);
    for (int64_t chunk = 1; chunk < statistics_chunks; ++chunk) {
      const int64_t done = chunk * rows_;
      MergeColumns(Columns(scratch, chunk),
                   static_cast<double>(std::min(rows_, layout_.positions - done)),
                   static_cast<double>(done), layout_.channels, sum);
    }
    for (int64_t c = 0; c < layout_.channels; ++c) {
      moments[c] = {sum.mean[c], sum.rest[c], sum.m2[c]};
    }
  }

  // Merges the pieces of each segment into moments[0 .. segments).
  void MergePieces(Moments* moments) const {
    for (int64_t s = 0; s < segments_; ++s) {
      CountedMoments sum = {};
      for (int64_t i = 0; i < pieces_; ++i) {
        Merge(moments[s * pieces_ + i],
              static_cast<double>(std::min(kChunkElements, segment_ - i * kChunkElements)), &sum);
      }
      moments[s] = sum.moments;
    }
  }

  template <typename Apply, typename C>
  void ApplyChunk(const Apply& apply, int64_t item, int64_t chunk, const C* mean, const C* scale,
                  const C* bias, const C* t) const {
    const int64_t offset = item * item_elements;
    if (layout_.channels_last) {
      const int64_t first = chunk * apply_rows_;
      const int64_t start = offset + first * layout_.channels;
      apply.rows[ending_.index](x_ + start, y_ + start,
                                std::min(apply_rows_, layout_.positions - first), layout_.channels,
                                mean, scale, bias, t);
      return;
    }
    int64_t i = chunk * kChunkElements;
    const int64_t end = std::min(item_elements, i + kChunkElements);
    if (layout_.positions == 1) {  // channels are contiguous in both layouts
      apply.rows[ending_.index](x_ + offset + i, y_ + offset + i, 1, end - i, mean + i, scale + i,
                                bias + i, t + i);
      return;
    }
    while (i < end) {
      const int64_t c = i / layout_.positions;
      const int64_t skip = i % layout_.positions;
      const bool whole = skip == 0 && end - i >= layout_.positions;
      const int64_t planes = whole ? (end - i) / layout_.positions : 1;
      const int64_t size = whole ? layout_.positions : std::min(layout_.positions - skip, end - i);
      apply.planes[ending_.index](x_ + offset + i, y_ + offset + i, planes, size, mean + c,
                                  scale + c, bias + c, t + c);
      i += planes * size;
    }
  }

  const Stage<T> stage_;
  const T* x_;
  T* y_;
  ChannelEnding ending_;
  bool tiny_;
  // Channels last: rows of a chunk.
  int64_t rows_ = 0, apply_rows_ = 0;
  // Channels first: contiguous segments with their own moments, and either the pieces that a
  // segment is cut into, or how many segments are done together.
  int64_t segments_ = 0, segment_ = 0, pieces_ = 1, together_ = 1;
  int64_t parts_ = 0;
  // Offsets in an item's scratch.
  size_t moments_ = 0, narrow_ = 0, wide_ = 0, flag_ = 0;
};

}  // namespace onnxnorm
