// Memory for the length of one call.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

namespace onnxnorm {

/// Memory that a node keeps between its runs, so that no run but the first allocates any. Runs at
/// the same time get memory of their own.
class ScratchCache {
 public:
  ScratchCache() = default;
  ScratchCache(const ScratchCache&) = delete;
  ScratchCache& operator=(const ScratchCache&) = delete;
  ~ScratchCache() {
    for (auto& slot : slots_) delete slot.load();
  }

 private:
  friend class Scratch;

  // Whole cache lines, so that neighbours that are written by different threads share none.
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  struct Block {
    explicit Block(size_t count) : lines(count), memory(new Line[count]) {}
    size_t lines;
    std::unique_ptr<Line[]> memory;
  };

  // A block of at least that many lines, perhaps one that is at hand. Throws std::bad_alloc.
  Block* Take(size_t lines) {
    for (auto& slot : slots_) {
      Block* block = slot.exchange(nullptr);
      if (block != nullptr && block->lines >= lines) return block;
      delete block;
    }
    return new Block(lines);
  }
  void Give(Block* block) {
    for (auto& slot : slots_) {
      Block* none = nullptr;
      if (slot.compare_exchange_strong(none, block)) return;
    }
    delete block;
  }

  std::atomic<Block*> slots_[2] = {};
};

/// Uninitialized memory: on the stack when it is small, else from the cache.
class Scratch {
 public:
  /// Throws std::bad_alloc.
  Scratch(size_t bytes, ScratchCache& cache) : cache_(cache) {
    if (bytes > sizeof inline_) block_ = cache.Take((bytes + 63) / 64);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (block_ != nullptr) cache_.Give(block_);
  }
  std::byte* data() { return block_ != nullptr ? block_->memory[0].bytes : inline_; }

 private:
  ScratchCache& cache_;
  ScratchCache::Block* block_ = nullptr;
  alignas(64) std::byte inline_[16384];
};

/// Rounds up to whole cache lines.
constexpr size_t CacheLines(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace onnxnorm
