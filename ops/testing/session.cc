#include "testing/session.h"

#include <dlfcn.h>

#include <cstring>
#include <functional>
#include <utility>

namespace onnxnorm::testing {

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = status->message;
  delete status;
  throw NodeError(message);
}

namespace {

// Runs the calls at once, each in a thread of its own; the first error is thrown once all are done.
void AtOnce(const std::vector<std::function<void()>>& calls) {
  std::vector<std::string> errors(calls.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < calls.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        calls[i]();
      } catch (const std::exception& error) {
        errors[i] = error.what();
        if (errors[i].empty()) errors[i] = "an error without a message";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) {
    if (!error.empty()) throw NodeError(error);
  }
}

bool Takes(const abi::CustomOp* op, const std::string& name, const std::vector<Declared>& inputs) {
  if (op->GetName(op) != name || op->GetInputTypeCount(op) != inputs.size()) return false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (op->GetInputType(op, i) != inputs[i].type) return false;
  }
  return true;
}

std::unique_ptr<OrtValue> Copy(const OrtValue& value) {
  auto memory = std::make_unique<Memory>(value.memory->bytes(), BytesOf(value.type));
  if (memory->bytes() > 0) std::memcpy(memory->data(), value.memory->data(), memory->bytes());
  return std::make_unique<OrtValue>(OrtValue{value.type, value.dims, std::move(memory)});
}

bool Same(const OrtValue* a, const OrtValue* b) {
  if (a == nullptr || b == nullptr) return a == b;
  return a->dims == b->dims &&
         (a->memory->bytes() == 0 ||
          std::memcmp(a->memory->data(), b->memory->data(), a->memory->bytes()) == 0);
}

template <typename Function>
Function* Symbol(void* handle, const char* name) {
  void* found = dlsym(handle, name);
  if (found == nullptr) throw std::runtime_error(std::string("the library has no ") + name);
  return reinterpret_cast<Function*>(found);
}

}  // namespace

Library::Library(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  RegisterCustomOps =
      Symbol<OrtStatus*(OrtSessionOptions*, const abi::ApiBase*)>(handle, "RegisterCustomOps");
  OpTable = Symbol<const char*()>(handle, "OnnxnormOpTable");
}

Session::Session(const Library& library, NodeDescription node)
    : node_(std::move(node)), pool_(node_.threads) {
  void* dropped = nullptr;
  try {
    AtOnce({[&] { kernel_ = MakeKernel(library); }, [&] { dropped = MakeKernel(library); }});
    op_->KernelDestroy(std::exchange(dropped, nullptr));
    InferOutputs();
  } catch (...) {
    for (void* kernel : {kernel_, dropped}) {
      if (kernel != nullptr) op_->KernelDestroy(kernel);
    }
    throw;
  }
}

Session::~Session() { op_->KernelDestroy(kernel_); }

void* Session::MakeKernel(const Library& library) {
  OrtSessionOptions options;
  Check(library.RegisterCustomOps(&options, HostApiBase()));
  const abi::CustomOp* found = nullptr;
  for (const OrtCustomOpDomain* domain : options.domains) {
    for (const abi::CustomOp* op : domain->ops) {
      if (found == nullptr && Takes(op, node_.op, node_.info.inputs)) found = op;
    }
  }
  if (found == nullptr) {
    throw NodeError(node_.op + ": the library has no kernel for the types of these inputs");
  }
  static std::mutex mutex;
  void* kernel = nullptr;
  Check(
      found->CreateKernelV2(found, HostApiBase()->GetApi(abi::kApiVersion), &node_.info, &kernel));
  const std::lock_guard<std::mutex> lock(mutex);
  op_ = found;
  return kernel;
}

void Session::InferOutputs() {
  OrtShapeInferContext context;
  for (const Declared& input : node_.info.inputs) {
    context.inputs.push_back(std::make_unique<OrtTensorTypeAndShapeInfo>(input));
  }
  context.outputs.resize(node_.wanted.size());
  Check(op_->InferOutputShapeFn(op_, &context));
  outputs_ = std::move(context.outputs);
  for (size_t i = 0; i < outputs_.size(); ++i) outputs_[i].type = op_->GetOutputType(op_, i);
}

void Session::Compute(OrtKernelContext* context) {
  Check(op_->KernelComputeV2(kernel_, context));
  for (size_t i = 0; i < context->wanted.size(); ++i) {
    if (context->wanted[i] && context->outputs[i] == nullptr) {
      throw NodeError("the kernel left out output " + std::to_string(i));
    }
  }
}

std::vector<std::shared_ptr<OrtValue>> Session::Run(const std::vector<OrtValue>& inputs) {
  OrtKernelContext context;
  for (const OrtValue& value : inputs) context.inputs.push_back(&value);
  context.wanted = node_.wanted;
  context.outputs.resize(node_.wanted.size());
  context.type = op_->GetOutputType(op_, 0);
  context.pool = &pool_;
  OrtKernelContext again = context, in_place = context;
  int *from = nullptr, *to = nullptr;
  const size_t pairs = op_->GetMayInplace == nullptr ? 0 : op_->GetMayInplace(&from, &to);
  for (size_t i = 0; i < pairs; ++i) {
    const auto input = static_cast<size_t>(from[i]), output = static_cast<size_t>(to[i]);
    if (output >= context.wanted.size() || !context.wanted[output]) continue;
    if (in_place.outputs[output] != nullptr) continue;
    in_place.outputs[output] = Copy(inputs.at(input));
    in_place.inputs[input] = in_place.outputs[output].get();
  }
  if (op_->ReleaseMayInplace != nullptr) op_->ReleaseMayInplace(from, to);
  AtOnce({[&] { Compute(&context); }, [&] { Compute(&again); }, [&] { Compute(&in_place); }});
  for (size_t i = 0; i < context.outputs.size(); ++i) {
    if (!Same(context.outputs[i].get(), again.outputs[i].get())) {
      throw NodeError("two runs at once differ in output " + std::to_string(i));
    }
    if (!Same(context.outputs[i].get(), in_place.outputs[i].get())) {
      throw NodeError("a run in place of its inputs differs in output " + std::to_string(i));
    }
  }
  return context.outputs;
}

}  // namespace onnxnorm::testing
