// A list that threads share without a lock.
#pragma once

#include <atomic>
#include <utility>

namespace onnxnorm {

/// Grows at its front and never shrinks; its elements stay where they are for as long as the
/// process lives. There is no mutex that a fork() in another thread could leave locked in the child
/// for ever.
template <typename T>
class PushList {
 public:
  constexpr PushList() = default;

  /// The first element for which match(element) is true, or nullptr.
  template <typename Match>
  T* Find(const Match& match) {
    for (Node* node = first_.load(std::memory_order_acquire); node != nullptr; node = node->next) {
      if (match(node->value)) return &node->value;
    }
    return nullptr;
  }

  /// Adds an element made from `parts`. Two threads that do not find an element may both add it.
  template <typename... Parts>
  T& Push(Parts&&... parts) {
    Node* node = new Node{T(std::forward<Parts>(parts)...), first_.load(std::memory_order_relaxed)};
    while (!first_.compare_exchange_weak(node->next, node, std::memory_order_release,
                                         std::memory_order_relaxed)) {
    }
    return node->value;
  }

 private:
  struct Node {
    T value;
    Node* next;
  };
  std::atomic<Node*> first_{nullptr};
};

}  // namespace onnxnorm
