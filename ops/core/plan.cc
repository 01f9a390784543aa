#include "core/plan.h"

#include <algorithm>
#include <thread>

namespace onnxnorm {
namespace {

/// Below this many elements (times their cost), waking the pool costs more than it saves.
constexpr double kSerialWork = 32768;
/// Elements whose second read should come from cache, when all threads work on the same items.
constexpr int64_t kWaveElements = int64_t{1} << 20;
/// Short items that are done together, and how many elements they may have.
constexpr int64_t kBatchItems = 8, kBatchElements = 4096;

// How many threads there may be. The pool does not say how large it is. Only the schedule depends
// on it.
int64_t Threads() {
  static const int64_t count = std::max(1u, std::thread::hardware_concurrency());
  return count;
}

// Short items are done a few at a time, as many as fit the first-level cache: their statistics do
// not wait for each other, so the processor overlaps what would else be one long chain.
int64_t BatchItems(const Plan& plan) {
  return std::clamp<int64_t>(kBatchElements / plan.item_elements, 1, kBatchItems);
}

size_t BatchScratch(const Plan& plan) {
  return CacheLines(plan.item_scratch) * static_cast<size_t>(BatchItems(plan));
}

void RunItems(const Plan& plan, int64_t first, int64_t last, std::byte* scratch) {
  const int64_t batch = BatchItems(plan);
  const size_t stride = CacheLines(plan.item_scratch);
  const auto at = [=](int64_t i) { return scratch + stride * static_cast<size_t>(i); };
  for (; first < last; first += batch) {
    const int64_t count = std::min(batch, last - first);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < plan.statistics_chunks; ++c) plan.Statistics(first + i, c, at(i));
      plan.Finish(first + i, at(i));
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < plan.apply_chunks; ++c) plan.Apply(first + i, c, at(i));
    }
  }
}

// Each thread takes whole items, one after the other: the second read of an item comes from the
// thread's own cache.
void RunByItem(const Plan& plan, const Parallel& parallel, ScratchCache& cache, int64_t tasks) {
  const size_t stride = BatchScratch(plan);
  Scratch scratch(stride * static_cast<size_t>(tasks), cache);
  std::byte* memory = scratch.data();
  parallel.For(tasks, [&, memory](int64_t t) {
    const int64_t each = plan.items / tasks, extra = plan.items % tasks;
    const int64_t first = t * each + std::min(t, extra);
    RunItems(plan, first, first + each + (t < extra), memory + stride * static_cast<size_t>(t));
  });
}

// All threads share each item: first its statistics, then its result. As many items at a time as
// the caches hold.
void RunByChunk(const Plan& plan, const Parallel& parallel, ScratchCache& cache) {
  const int64_t wave = std::clamp<int64_t>(kWaveElements / plan.item_elements, 1, plan.items);
  const size_t stride = CacheLines(plan.item_scratch);
  Scratch scratch(stride * static_cast<size_t>(wave), cache);
  std::byte* memory = scratch.data();
  for (int64_t first = 0; first < plan.items; first += wave) {
    const int64_t count = std::min(wave, plan.items - first);
    const auto item_scratch = [=](int64_t i) { return memory + stride * static_cast<size_t>(i); };
    if (plan.statistics_chunks > 0) {
      parallel.For(count * plan.statistics_chunks, [&](int64_t t) {
        const int64_t i = t / plan.statistics_chunks;
        plan.Statistics(first + i, t % plan.statistics_chunks, item_scratch(i));
      });
    }
    for (int64_t i = 0; i < count; ++i) plan.Finish(first + i, item_scratch(i));
    parallel.For(count * plan.apply_chunks, [&](int64_t t) {
      const int64_t i = t / plan.apply_chunks;
      plan.Apply(first + i, t % plan.apply_chunks, item_scratch(i));
    });
  }
}

}  // namespace

void Execute(const Plan& plan, const Parallel& parallel, ScratchCache& cache) {
  const double work =
      static_cast<double>(plan.items) * static_cast<double>(plan.item_elements) * plan.cost;
  if (work < kSerialWork || Threads() == 1) {
    Scratch scratch(BatchScratch(plan), cache);
    return RunItems(plan, 0, plan.items, scratch.data());
  }
  if (plan.items < 2 * Threads() && plan.item_elements > kChunkElements) {
    return RunByChunk(plan, parallel, cache);
  }
  // Several tasks for each thread, so that one that is held up does not hold up the others.
  const int64_t tasks =
      static_cast<int64_t>(std::min(static_cast<double>(4 * Threads()), work / (kSerialWork / 4)));
  RunByItem(plan, parallel, cache, std::clamp<int64_t>(tasks, 1, plan.items));
}

}  // namespace onnxnorm
