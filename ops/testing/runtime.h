// ONNX Runtime's part of the C ABI, as far as abi/onnxruntime_abi.h declares it: what its opaque
// types hold here, and the function table. Unlike ONNX Runtime it is built with the sanitizers of
// the library under test, so that they see every memory access and every lock between the two.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "testing/memory.h"
#include "testing/thread_pool.h"

namespace onnxnorm::testing {

/// Objects that the library must give back; what is left after a call is a leak.
extern std::atomic<int> live_statuses, live_type_infos, live_shape_infos;

struct Counted {
  explicit Counted(std::atomic<int>* count) : count_(count) { ++*count_; }
  Counted(const Counted& other) : count_(other.count_) { ++*count_; }
  Counted& operator=(const Counted&) { return *this; }
  ~Counted() { --*count_; }

 private:
  std::atomic<int>* count_;
};

using AttributeValue = std::variant<int64_t, float, std::string, std::vector<int64_t>>;

struct Attribute {
  std::string name;
  AttributeValue value;
};

/// A tensor's type and shape as a graph declares it. A dimension is -1 where it is not known, and
/// may then have a name.
struct Declared {
  abi::ElementType type = abi::ElementType::kUndefined;
  bool ranked = false;
  std::vector<int64_t> dims;
  std::vector<std::string> names;
};

size_t BytesOf(abi::ElementType type);

const abi::ApiBase* HostApiBase();

}  // namespace onnxnorm::testing

struct OrtStatus : onnxnorm::testing::Counted {
  OrtStatus(onnxnorm::abi::ErrorCode status_code, const char* text)
      : Counted(&onnxnorm::testing::live_statuses), code(status_code), message(text) {}
  onnxnorm::abi::ErrorCode code;
  std::string message;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const onnxnorm::abi::CustomOp*> ops;
};

struct OrtSessionOptions {
  std::vector<const OrtCustomOpDomain*> domains;
};

struct OrtTensorTypeAndShapeInfo : onnxnorm::testing::Counted {
  explicit OrtTensorTypeAndShapeInfo(onnxnorm::testing::Declared tensor)
      : Counted(&onnxnorm::testing::live_shape_infos), declared(std::move(tensor)) {}
  onnxnorm::testing::Declared declared;
};

struct OrtTypeInfo : onnxnorm::testing::Counted {
  explicit OrtTypeInfo(onnxnorm::testing::Declared declared)
      : Counted(&onnxnorm::testing::live_type_infos), tensor(std::move(declared)) {}
  OrtTensorTypeAndShapeInfo tensor;
};

struct OrtValue {
  onnxnorm::abi::ElementType type;
  std::vector<int64_t> dims;
  std::unique_ptr<onnxnorm::testing::Memory> memory;
};

struct OrtKernelInfo {
  std::string node;
  std::vector<onnxnorm::testing::Attribute> attributes;
  std::vector<onnxnorm::testing::Declared> inputs;
  size_t outputs = 0;
};

struct OrtShapeInferContext {
  std::vector<std::unique_ptr<OrtTensorTypeAndShapeInfo>> inputs;
  std::vector<onnxnorm::testing::Declared> outputs;
};

struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;
  /// Which outputs somebody reads, and their values once the kernel has asked for them. An output
  /// that is there from the start is an input to be written over.
  std::vector<bool> wanted;
  std::vector<std::shared_ptr<OrtValue>> outputs;
  onnxnorm::abi::ElementType type;
  onnxnorm::testing::ThreadPool* pool;
};
