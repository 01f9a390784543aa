// The plan of norms with parameters for each channel: group norm, switchable norm, and their
// relatives.
//
// An item is a set of channels of one sample, in one of two layouts:
//   planes: (channels, positions), the positions of a channel are contiguous;
//   blocks: (channels / block, positions, block); channels last is one block.
// The plan gathers the moments of each channel (or of the whole item), asks the norm for one (mean,
// scale, bias) for each channel, and applies y = ending((x - mean) * scale + bias).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

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
  kItemMoments,     // one set of moments; planes only
  kChannelSquares,  // the moments of each channel around 0: m2 is the sum of squares
};

/// What a ChannelPlan needs to know of the tensor.
struct ChannelLayout {
  int64_t items;
  int64_t channels;   // of one item
  int64_t positions;  // of one channel
  int64_t block;      // 0: planes
  Statistic statistic;
  int64_t items_per_sample;

  /// The first of an item's channels, counted in its sample.
  int64_t FirstChannel(int64_t item) const { return item % items_per_sample * channels; }

  /// For norms that look at groups of a sample's channels together: a group, or the fewest groups
  /// that are whole blocks.
  static ChannelLayout Groups(const ChannelShape& shape, int64_t groups) {
    const int64_t size = shape.channels / groups;
    if (shape.block > 0) return Of(shape, std::lcm(size, shape.block), Statistic::kChannelMoments);
    return Of(shape, size, Statistic::kItemMoments);
  }
  /// For norms that look at all channels of a sample together.
  static ChannelLayout Samples(const ChannelShape& shape,
                               Statistic statistic = Statistic::kChannelMoments) {
    return Of(shape, shape.channels, statistic);
  }
  /// For norms that look at each channel alone: a few channels, so that they are read again while
  /// they are in a cache.
  static ChannelLayout Channels(const ChannelShape& shape,
                                Statistic statistic = Statistic::kChannelMoments) {
    const int64_t unit = std::max<int64_t>(shape.block, 1), units = shape.channels / unit;
    int64_t some = std::clamp<int64_t>(kItemElements / (shape.positions * unit), 1, units);
    while (units % some != 0) ++some;
    return Of(shape, some * unit, statistic);
  }

 private:
  static constexpr int64_t kItemElements = 4096;

  // Items of that many channels.
  static ChannelLayout Of(const ChannelShape& shape, int64_t channels, Statistic statistic) {
    const int64_t count = shape.channels / channels;
    return {shape.samples * count, channels, shape.positions, shape.block, statistic, count};
  }
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

/// How the blocks of an item are cut into chunks: some whole blocks each, or some rows of one.
struct BlockChunks {
  int64_t count = 0;
  int64_t rows = 0;       // of a chunk
  int64_t per_block = 1;  // chunks of a block
  int64_t together = 1;   // blocks of a chunk
  int64_t blocks = 0, positions = 0;

  BlockChunks() = default;
  BlockChunks(const ChannelLayout& layout, int64_t elements, int64_t least_rows)
      : blocks(layout.channels / layout.block), positions(layout.positions) {
    rows = std::max(least_rows, elements / layout.block);
    per_block = (positions + rows - 1) / rows;
    together = per_block > 1 ? 1 : std::clamp<int64_t>(rows / positions, 1, blocks);
    count = per_block > 1 ? blocks * per_block : (blocks + together - 1) / together;
  }

  /// Calls body(block, its part, first row, rows) for what a chunk holds.
  template <typename Body>
  void ForBlocks(int64_t chunk, const Body& body) const {
    if (per_block > 1) {
      const int64_t part = chunk % per_block, first = part * rows;
      return body(chunk / per_block, part, first, std::min(rows, positions - first));
    }
    const int64_t last = std::min(blocks, (chunk + 1) * together);
    for (int64_t block = chunk * together; block < last; ++block) body(block, 0, 0, positions);
  }
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
    if (layout.block > 0) {
      PlanBlocks();
    } else {
      PlanPlanes();
    }
    const size_t channels = static_cast<size_t>(layout.channels);
    narrow_ = CacheLines(moments_ + static_cast<size_t>(parts_) * sizeof(Moments));
    wide_ = CacheLines(narrow_ + 4 * channels * sizeof(Compute));
    flag_ = wide_ + 3 * channels * sizeof(double);
    item_scratch = flag_ + sizeof(bool);
  }

  void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept override {
    if (layout_.block > 0) return StatisticsOfBlocks(item, chunk, scratch);
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
    if (layout_.block > 0) {
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
  void PlanBlocks() {
    // Column sums settle their shifts once in each chunk: longer chunks are cheaper.
    statistics_ = BlockChunks(layout_, 4 * kChunkElements, 32);
    statistics_chunks = statistics_.count;
    parts_ = layout_.channels;
    apply_ = BlockChunks(layout_, kChunkElements, 1);
    apply_chunks = apply_.count;
    moments_ = CacheLines(static_cast<size_t>(3 * statistics_.per_block * layout_.channels) *
                          sizeof(double));
  }

  void PlanPlanes() {
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

  // The moments of each channel over the `part`-th rows of its block.
  MomentColumns Columns(std::byte* scratch, int64_t part) const {
    double* first = reinterpret_cast<double*>(scratch) + 3 * part * layout_.channels;
    return {first, first + layout_.channels, first + 2 * layout_.channels};
  }

  void StatisticsOfBlocks(int64_t item, int64_t chunk, std::byte* scratch) const {
    const int64_t n = layout_.block;
    statistics_.ForBlocks(chunk, [&](int64_t block, int64_t part, int64_t first, int64_t rows) {
      const int64_t start = item * item_elements + (block * layout_.positions + first) * n;
      const MomentColumns out = Columns(scratch, part).From(block * n);
      stage_.Make(start, rows * n);
      if (layout_.statistic != Statistic::kChannelSquares) {
        return kernels_.column_moments(x_ + start, rows, n, n, tiny_, out);
      }
      std::fill_n(out.mean, n, 0.0);
      std::fill_n(out.rest, n, 0.0);
      std::fill_n(out.m2, n, 0.0);
      kernels_.column_squares(x_ + start, rows, n, n, tiny_, out.m2);
    });
  }

  void MergeRows(std::byte* scratch, Moments* moments) const {
    const MomentColumns sum = Columns(scratch, 0);
    for (int64_t part = 1; part < statistics_.per_block; ++part) {
      const int64_t done = part * statistics_.rows;
      MergeColumns(Columns(scratch, part),
                   static_cast<double>(std::min(statistics_.rows, layout_.positions - done)),
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
    if (layout_.block > 0) {
      const int64_t n = layout_.block;
      apply_.ForBlocks(chunk, [&](int64_t block, int64_t, int64_t first, int64_t rows) {
        const int64_t start = offset + (block * layout_.positions + first) * n, c = block * n;
        apply.rows[ending_.index](x_ + start, y_ + start, rows, n, mean + c, scale + c, bias + c,
                                  t + c);
      });
      return;
    }
    int64_t i = chunk * kChunkElements;
    const int64_t end = std::min(item_elements, i + kChunkElements);
    if (layout_.positions == 1) {
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
  // Blocks.
  BlockChunks statistics_{}, apply_{};
  // Planes: contiguous segments with their own moments, and either the pieces that a
  // segment is cut into, or how many segments are done together.
  int64_t segments_ = 0, segment_ = 0, pieces_ = 1, together_ = 1;
  int64_t parts_ = 0;
  // Offsets in an item's scratch.
  size_t moments_ = 0, narrow_ = 0, wide_ = 0, flag_ = 0;
};

}  // namespace onnxnorm
