// One node of the library under test: made, run and destroyed as ONNX Runtime does it.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "testing/runtime.h"

namespace onnxnorm::testing {

/// What goes back to the caller as the node's error: the library's message, or the host's own.
struct NodeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws what the status says, and releases it.
void Check(OrtStatus* status);

/// The two entry points.
struct Library {
  OrtStatus* (*RegisterCustomOps)(OrtSessionOptions* options, const abi::ApiBase* base);
  const char* (*OpTable)();

  explicit Library(const char* path);
};

/// A node as the caller describes it.
struct NodeDescription {
  std::string op;
  OrtKernelInfo info;
  std::vector<bool> wanted;  // which outputs somebody reads
  size_t threads = 1;
};

/// The node with its kernel and its own thread pool.
class Session {
 public:
  /// Registers the library with options of its own and makes the kernel, while a second thread
  /// does the same and drops what it made.
  Session(const Library& library, NodeDescription node);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// The outputs' types and shapes as the library infers them.
  const std::vector<Declared>& outputs() const { return outputs_; }

  /// Runs the node three times at once, as a session that several threads use: twice into new
  /// memory, once in place of the inputs that the library allows it for. All must agree bit for
  /// bit.
  std::vector<std::shared_ptr<OrtValue>> Run(const std::vector<OrtValue>& inputs);

 private:
  void* MakeKernel(const Library& library);
  void Compute(OrtKernelContext* context);
  void InferOutputs();

  NodeDescription node_;
  const abi::CustomOp* op_ = nullptr;
  void* kernel_ = nullptr;
  std::vector<Declared> outputs_;
  ThreadPool pool_;
};

}  // namespace onnxnorm::testing
