#include "testing/runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace onnxnorm::testing {

std::atomic<int> live_statuses{0}, live_type_infos{0}, live_shape_infos{0};

size_t BytesOf(abi::ElementType type) {
  switch (type) {
    case abi::ElementType::kFloat16:
    case abi::ElementType::kBFloat16:
      return 2;
    case abi::ElementType::kDouble:
      return 8;
    default:
      return 4;
  }
}

namespace {

using abi::Api;
using abi::ErrorCode;

OrtStatus* Status(ErrorCode code, const std::string& text) {
  return new OrtStatus(code, text.c_str());
}

OrtStatus* CreateStatus(ErrorCode code, const char* message) {
  return new OrtStatus(code, message);
}
const char* GetErrorMessage(const OrtStatus* status) { return status->message.c_str(); }
void ReleaseStatus(OrtStatus* status) { delete status; }

OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** out) {
  *out = new OrtCustomOpDomain{name, {}};
  return nullptr;
}

OrtStatus* AddOp(OrtCustomOpDomain* domain, const abi::CustomOp* op) {
  domain->ops.push_back(op);
  return nullptr;
}

void ReleaseCustomOpDomain(OrtCustomOpDomain* domain) { delete domain; }

OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  options->domains.push_back(domain);
  return nullptr;
}

OrtStatus* GetTensorMutableData(OrtValue* value, void** out) {
  *out = value->memory->data();
  return nullptr;
}

OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  *out = new OrtTensorTypeAndShapeInfo({value->type, true, value->dims, {}});
  return nullptr;
}

void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) { delete info; }

OrtStatus* CastTypeInfoToTensorInfo(const OrtTypeInfo* type,
                                    const OrtTensorTypeAndShapeInfo** out) {
  *out = &type->tensor;
  return nullptr;
}

void ReleaseTypeInfo(OrtTypeInfo* type) { delete type; }

OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  *out = info->declared.dims.size();
  return nullptr;
}

OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank) {
  for (size_t i = 0; i < rank && i < info->declared.dims.size(); ++i) {
    dims[i] = info->declared.dims[i];
  }
  return nullptr;
}

OrtStatus* GetSymbolicDimensions(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                 size_t rank) {
  for (size_t i = 0; i < rank; ++i) {
    names[i] = i < info->declared.names.size() ? info->declared.names[i].c_str() : "";
  }
  return nullptr;
}

OrtStatus* SetSymbolicDimensions(OrtTensorTypeAndShapeInfo* info, const char** names, size_t rank) {
  info->declared.names.clear();  // as ONNX Runtime does: what `names` points to may go with it
  for (size_t i = 0; i < rank; ++i) info->declared.names.emplace_back(names[i]);
  return nullptr;
}

template <typename T>
OrtStatus* GetAttribute(const OrtKernelInfo* info, const char* name, const T** out) {
  for (const Attribute& attribute : info->attributes) {
    if (attribute.name != name) continue;
    *out = std::get_if<T>(&attribute.value);
    if (*out != nullptr) return nullptr;
    return Status(ErrorCode::kFail, std::string("attribute ") + name + " is of another type");
  }
  return Status(ErrorCode::kFail, std::string("no attribute ") + name);
}

template <typename T>
OrtStatus* GetNumber(const OrtKernelInfo* info, const char* name, T* out) {
  const T* found = nullptr;
  OrtStatus* status = GetAttribute(info, name, &found);
  if (status == nullptr) *out = *found;
  return status;
}

// A text with its final NUL into a buffer of *size; without a buffer its size alone.
OrtStatus* CopyText(const std::string& text, char* out, size_t* size) {
  const size_t needed = text.size() + 1;
  const size_t given = std::exchange(*size, needed);
  if (out == nullptr) return nullptr;
  if (given < needed) return Status(ErrorCode::kInvalidArgument, "the buffer is too small");
  std::memcpy(out, text.c_str(), needed);
  return nullptr;
}

OrtStatus* GetAttributeString(const OrtKernelInfo* info, const char* name, char* out,
                              size_t* size) {
  const std::string* found = nullptr;
  OrtStatus* status = GetAttribute(info, name, &found);
  return status != nullptr ? status : CopyText(*found, out, size);
}

OrtStatus* GetAttributeInts(const OrtKernelInfo* info, const char* name, int64_t* out,
                            size_t* size) {
  const std::vector<int64_t>* found = nullptr;
  OrtStatus* status = GetAttribute(info, name, &found);
  if (status != nullptr) return status;
  const size_t given = std::exchange(*size, found->size());
  if (out == nullptr) return nullptr;
  if (given < found->size()) {
    return Status(ErrorCode::kInvalidArgument, "the buffer is too small");
  }
  for (size_t i = 0; i < found->size(); ++i) out[i] = (*found)[i];
  return nullptr;
}

OrtStatus* GetInfoInputCount(const OrtKernelInfo* info, size_t* out) {
  *out = info->inputs.size();
  return nullptr;
}

OrtStatus* GetInputTypeInfo(const OrtKernelInfo* info, size_t index, OrtTypeInfo** out) {
  if (index >= info->inputs.size()) return Status(ErrorCode::kInvalidArgument, "no such input");
  *out = new OrtTypeInfo(info->inputs[index]);
  return nullptr;
}

OrtStatus* GetNodeName(const OrtKernelInfo* info, char* out, size_t* size) {
  return CopyText(info->node, out, size);
}

OrtStatus* InferGetInput(const OrtShapeInferContext* context, size_t index,
                         OrtTensorTypeAndShapeInfo** out) {
  if (index >= context->inputs.size()) return Status(ErrorCode::kInvalidArgument, "no such input");
  *out = context->inputs[index].get();
  return nullptr;
}

OrtStatus* InferSetOutput(const OrtShapeInferContext* context, size_t index,
                          const OrtTensorTypeAndShapeInfo* info) {
  // The ABI's const is not meant: the context collects the outputs.
  auto& outputs = const_cast<OrtShapeInferContext*>(context)->outputs;
  if (index >= outputs.size()) return Status(ErrorCode::kInvalidArgument, "no such output");
  outputs[index] = info->declared;
  outputs[index].ranked = true;
  return nullptr;
}

OrtStatus* GetInputCount(const OrtKernelContext* context, size_t* out) {
  *out = context->inputs.size();
  return nullptr;
}

OrtStatus* GetInput(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  *out = index < context->inputs.size() ? context->inputs[index] : nullptr;
  return nullptr;
}

OrtStatus* GetOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                     OrtValue** out) {
  *out = nullptr;
  // A node may leave out the last outputs, or name none.
  if (index >= context->wanted.size() || !context->wanted[index]) return nullptr;
  std::shared_ptr<OrtValue>& value = context->outputs[index];
  const std::vector<int64_t> shape(dims, dims + rank);
  if (value != nullptr && value->dims != shape) {
    return Status(ErrorCode::kFail, "an output in place of an input has another shape");
  }
  if (value == nullptr) {
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    const size_t element = BytesOf(context->type);
    value = std::make_shared<OrtValue>(
        OrtValue{context->type, shape, std::make_unique<Memory>(count * element, element)});
    value->memory->Soil();
  }
  *out = value.get();
  return nullptr;
}

OrtStatus* ParallelFor(const OrtKernelContext* context, void (*body)(void*, size_t), size_t total,
                       size_t, void* data) {
  context->pool->For(body, total, data);
  return nullptr;
}

// What stands in the slots that the host does not play.
template <size_t slot>
void Missing() {
  std::fprintf(stderr,
               "onnxnorm_host: the library called slot %zu of ONNX Runtime's function table, which "
               "ops/testing/runtime.cc does not play\n",
               slot);
  std::abort();
}

template <size_t... slots>
Api TableOfMissing(std::index_sequence<slots...>) {
  void (*const all[])() = {Missing<slots>...};
  static_assert(sizeof all == sizeof(Api));
  Api api;
  std::memcpy(static_cast<void*>(&api), all, sizeof api);
  return api;
}

Api MakeApi() {
  Api api = TableOfMissing(std::make_index_sequence<sizeof(Api) / sizeof(void*)>());
  api.CreateStatus = CreateStatus;
  api.GetErrorMessage = GetErrorMessage;
  api.CreateCustomOpDomain = CreateCustomOpDomain;
  api.CustomOpDomain_Add = AddOp;
  api.AddCustomOpDomain = AddCustomOpDomain;
  api.GetTensorMutableData = GetTensorMutableData;
  api.CastTypeInfoToTensorInfo = CastTypeInfoToTensorInfo;
  api.GetDimensionsCount = GetDimensionsCount;
  api.GetDimensions = GetDimensions;
  api.GetSymbolicDimensions = GetSymbolicDimensions;
  api.GetTensorTypeAndShape = GetTensorTypeAndShape;
  api.KernelInfoGetAttribute_float = GetNumber<float>;
  api.KernelInfoGetAttribute_int64 = GetNumber<int64_t>;
  api.KernelInfoGetAttribute_string = GetAttributeString;
  api.KernelContext_GetInputCount = GetInputCount;
  api.KernelContext_GetInput = GetInput;
  api.KernelContext_GetOutput = GetOutput;
  api.ReleaseStatus = ReleaseStatus;
  api.ReleaseTypeInfo = ReleaseTypeInfo;
  api.ReleaseTensorTypeAndShapeInfo = ReleaseTensorTypeAndShapeInfo;
  api.ReleaseCustomOpDomain = ReleaseCustomOpDomain;
  api.KernelInfoGetAttributeArray_int64 = GetAttributeInts;
  api.KernelInfo_GetInputCount = GetInfoInputCount;
  api.KernelInfo_GetInputTypeInfo = GetInputTypeInfo;
  api.KernelInfo_GetNodeName = GetNodeName;
  api.ShapeInferContext_GetInputTypeShape = InferGetInput;
  api.ShapeInferContext_SetOutputTypeShape = InferSetOutput;
  api.SetSymbolicDimensions = SetSymbolicDimensions;
  api.KernelContext_ParallelFor = ParallelFor;
  return api;
}

const Api* GetApi(uint32_t version) {
  static const Api api = MakeApi();
  return version <= abi::kApiVersion ? &api : nullptr;
}

const char* GetVersionString() { return "the test host"; }

}  // namespace

const abi::ApiBase* HostApiBase() {
  static const abi::ApiBase base = {GetApi, GetVersionString};
  return &base;
}

}  // namespace onnxnorm::testing
