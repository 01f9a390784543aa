// Memory for the length of one call.
#pragma once

#include <cstddef>
#include <memory>

namespace onnxnorm {

/// Uninitialized memory: on the stack when it is small, else from the heap.
class Scratch {
 public:
  /// Throws std::bad_alloc.
  explicit Scratch(size_t bytes) {
    if (bytes > sizeof inline_) heap_.reset(new Line[(bytes + sizeof(Line) - 1) / sizeof(Line)]);
  }
  std::byte* data() { return heap_ ? heap_[0].bytes : inline_; }

 private:
  // Whole cache lines, so that neighbours that are written by different threads share none.
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  alignas(64) std::byte inline_[16384];
  std::unique_ptr<Line[]> heap_;
};

/// Rounds up to whole cache lines.
constexpr size_t CacheLines(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace onnxnorm
