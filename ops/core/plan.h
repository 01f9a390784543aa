// How the work of one call is cut into pieces and spread over the thread pool.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/parallel.h"
#include "core/scratch.h"

namespace onnxnorm {

/// Elements of one piece of work: large against the cost of handing it out, small against a
/// second-level cache.
inline constexpr int64_t kChunkElements = 16384;

/// A call as independent items (a group, a sample, a row), each of which is read for its
/// statistics, finished, and read again to apply them. Both reads are cut into chunks by the shape
/// alone, so results do not depend on the number of threads.
class Plan {
 public:
  virtual ~Plan() = default;

  int64_t items = 0;
  int64_t item_elements = 0;
  /// Chunks of one item's statistics; 0 if there is no separate pass.
  int64_t statistics_chunks = 0;
  int64_t apply_chunks = 1;
  /// Bytes that one item keeps from its statistics until it has been applied.
  size_t item_scratch = 0;
  /// Rough cost of an element against a plain copy.
  double cost = 1;

  virtual void Statistics(int64_t item, int64_t chunk, std::byte* scratch) const noexcept = 0;
  virtual void Finish(int64_t item, std::byte* scratch) const noexcept = 0;
  virtual void Apply(int64_t item, int64_t chunk, std::byte* scratch) const noexcept = 0;
};

/// Does all of the plan's work.
void Execute(const Plan& plan, const Parallel& parallel, ScratchCache& memory);

}  // namespace onnxnorm
