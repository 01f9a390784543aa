// Tensor memory that shows reads and writes outside of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxnorm::testing {

/// Memory of exactly `bytes`, laid in one of several ways, so that over many tensors every edge is
/// watched: by AddressSanitizer around heap memory; by pages that cannot be touched, which also
/// catch masked vector instructions, right behind the last byte or before the first. Aligned to no
/// more than one element.
class Memory {
 public:
  Memory(size_t bytes, size_t element);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  /// A pattern that is no plausible result, so that what a kernel leaves out is seen.
  void Soil();

 private:
  void Fence(bool at_end);
  /// At the heap's own alignment, or `offset` bytes further.
  void TakeFromHeap(size_t offset);

  size_t bytes_;
  char* data_ = nullptr;
  char* block_ = nullptr;
  size_t fenced_ = 0;  // size of the mapping, 0 for heap memory
};

}  // namespace onnxnorm::testing
