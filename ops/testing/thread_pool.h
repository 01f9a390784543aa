// The host's threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

namespace onnxnorm::testing {

/// As a session's pool in ONNX Runtime: the caller works too, several callers may come at once, and
/// the order of the calls is nobody's business. Nothing but the beginning and the end of a loop
/// synchronizes its calls, so that ThreadSanitizer sees what two of them share.
class ThreadPool {
 public:
  explicit ThreadPool(size_t threads) {
    for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
  }

  ~ThreadPool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void For(void (*body)(void*, size_t), size_t total, void* data) {
    if (total == 0) return;
    Loop loop{body, data, total, Stride(total)};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      loops_.push_back(&loop);
    }
    wake_.notify_all();
    Run(&loop);
    std::unique_lock<std::mutex> lock(mutex_);
    for (auto it = loops_.begin(); it != loops_.end(); ++it) {
      if (*it == &loop) {
        loops_.erase(it);
        break;
      }
    }
    done_.wait(lock, [&] { return loop.busy == 0; });
  }

 private:
  struct Loop {
    void (*body)(void*, size_t);
    void* data;
    size_t total, stride;
    std::atomic<size_t> next{0};
    size_t busy = 0;  // workers in it; under the mutex

    Loop(void (*loop_body)(void*, size_t), void* loop_data, size_t loop_total, size_t loop_stride)
        : body(loop_body), data(loop_data), total(loop_total), stride(loop_stride) {}
  };

  // A step through all of [0, total) that is not in order.
  static size_t Stride(size_t total) {
    size_t stride = total * 5 / 8 + 1;
    while (std::gcd(stride, total) != 1) ++stride;
    return stride;
  }

  static void Run(Loop* loop) {
    for (;;) {
      // Relaxed: handing out numbers must not hide a race between the calls.
      const size_t i = loop->next.fetch_add(1, std::memory_order_relaxed);
      if (i >= loop->total) return;
      loop->body(loop->data, i * loop->stride % loop->total);
    }
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return ends_ || Open() != nullptr; });
      if (ends_) return;
      Loop* loop = Open();
      ++loop->busy;
      lock.unlock();
      Run(loop);
      lock.lock();
      --loop->busy;
      done_.notify_all();
    }
  }

  Loop* Open() {
    for (Loop* loop : loops_) {
      if (loop->next.load(std::memory_order_relaxed) < loop->total) return loop;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Loop*> loops_;
  std::vector<std::thread> workers_;
  bool ends_ = false;
};

}  // namespace onnxnorm::testing
