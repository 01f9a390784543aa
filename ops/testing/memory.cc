#include "testing/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace onnxnorm::testing {
namespace {

// Changes with every tensor, in an order that is no multiple of a node's number of tensors.
unsigned NextLayout() {
  static std::atomic<uint32_t> state{1};
  uint32_t old = state.load(std::memory_order_relaxed), next = 0;
  do {
    next = old * 1664525u + 1013904223u;
  } while (!state.compare_exchange_weak(old, next, std::memory_order_relaxed));
  return next >> 30;
}

}  // namespace

Memory::Memory(size_t bytes, size_t element) : bytes_(bytes) {
  const unsigned layout = NextLayout();
  if (layout < 2) {
    Fence(layout == 0);
  } else {
    TakeFromHeap(layout == 2 ? 0 : element);
  }
}

void Memory::TakeFromHeap(size_t offset) {
  block_ = static_cast<char*>(std::malloc(bytes_ + offset));
  if (block_ == nullptr) throw std::bad_alloc();
  data_ = block_ + offset;
}

void Memory::Fence(bool at_end) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inner = (bytes_ + page - 1) / page * page;
  fenced_ = inner + 2 * page;
  void* mapped = mmap(nullptr, fenced_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  block_ = static_cast<char*>(mapped);
  if (inner > 0 && mprotect(block_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(block_, fenced_);
    throw std::bad_alloc();
  }
  data_ = block_ + page + (at_end ? inner - bytes_ : 0);
}

Memory::~Memory() {
  if (fenced_ > 0) {
    munmap(block_, fenced_);
  } else {
    std::free(block_);
  }
}

void Memory::Soil() {
  if (bytes_ > 0) std::memset(data_, 0xA5, bytes_);
}

}  // namespace onnxnorm::testing
