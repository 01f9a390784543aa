#include "core/custom_op.h"

#include <atomic>
#include <string>

#include "core/error.h"

namespace onnxnorm {
namespace {

const CpuOp& Self(const abi::CustomOp* op) { return *static_cast<const CpuOp*>(op); }

/// What a node holds between runs.
struct NodeKernel {
  const abi::Api* api;
  const OpDefinition& definition;
  NodeName name;
  std::vector<std::string> inputs;  // that the kernel knows
  std::unique_ptr<Kernel> kernel;
  mutable ScratchCache parameters{};
  mutable ScratchCache scratch{};

  /// Takes the shape of `skip` out. Throws unless it is that of X as far as both are known.
  void CheckSkip(std::vector<Shape>* shapes) const;
};

void NodeKernel::CheckSkip(std::vector<Shape>* shapes) const {
  if (!definition.skip) return;
  const Shape x = (*shapes)[0], skip = (*shapes)[1];
  bool agree = !x.known() || !skip.known() || x.rank() == skip.rank();
  for (int64_t i = 0; agree && x.known() && skip.known() && i < x.rank(); ++i) {
    agree = x[i] < 0 || skip[i] < 0 || x[i] == skip[i];
  }
  if (!agree) {
    throw Error(Text(name.ToString(), ": input skip has shape ", skip.ToString(),
                     "; it must be that of X, ", x.ToString()));
  }
  shapes->erase(shapes->begin() + 1);
}

Shape ReadShape(const abi::Api* api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  ThrowIfError(api, api->GetDimensionsCount(info, &rank));
  Shape shape(rank);
  if (rank > 0) ThrowIfError(api, api->GetDimensions(info, shape.data(), rank));
  return shape;
}

Shape TensorShape(const abi::Api* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ThrowIfError(api, api->GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo,
                        void(ONNXNORM_ORT_CALL*)(OrtTensorTypeAndShapeInfo*)>
      release(info, api->ReleaseTensorTypeAndShapeInfo);
  return ReadShape(api, info);
}

std::string ReadNodeName(const abi::Api* api, const OrtKernelInfo* info) {
  size_t size = 0;
  ThrowIfError(api, api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  ThrowIfError(api, api->KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return name;
}

// The input shapes as far as the graph tells them. The runtime shows an unknown rank as rank 0,
// which no input has.
std::vector<Shape> StaticShapes(const abi::Api* api, const OrtKernelInfo* info, size_t count) {
  std::vector<Shape> shapes(count);
  for (size_t i = 0; i < count; ++i) {
    OrtTypeInfo* type = nullptr;
    ThrowIfError(api, api->KernelInfo_GetInputTypeInfo(info, i, &type));
    const std::unique_ptr<OrtTypeInfo, void(ONNXNORM_ORT_CALL*)(OrtTypeInfo*)> release(
        type, api->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    ThrowIfError(api, api->CastTypeInfoToTensorInfo(type, &tensor));
    if (tensor == nullptr) continue;
    const Shape shape = ReadShape(api, tensor);
    if (shape.rank() > 0) shapes[i] = shape;
  }
  return shapes;
}

OrtStatus* ONNXNORM_ORT_CALL MakeKernel(const abi::CustomOp* op, const abi::Api* api,
                                        const OrtKernelInfo* info, void** kernel) {
  *kernel = nullptr;
  return Guard(api, [&] {
    const OpDefinition& definition = Self(op).definition;
    const NodeName name = {definition.name, ReadNodeName(api, info)};
    const Attributes attributes(api, info, name, definition.blocked);
    std::unique_ptr<NodeKernel> node(
        new NodeKernel{api, definition, name, definition.KernelInputs(),
                       definition.create(attributes, Self(op).type, Self(op).level)});
    std::vector<Shape> shapes = StaticShapes(api, info, definition.inputs.size());
    node->CheckSkip(&shapes);
    node->kernel->CheckShapes(InputShapes(node->name, node->inputs, shapes));
    *kernel = node.release();
  });
}

void ONNXNORM_ORT_CALL DestroyKernel(void* kernel) { delete static_cast<NodeKernel*>(kernel); }

// The data of an output, which has X's shape; null if it was left out.
void* Output(const abi::Api* api, OrtKernelContext* context, size_t index, const Shape& shape) {
  OrtValue* output = nullptr;
  ThrowIfError(api, api->KernelContext_GetOutput(context, index, shape.data(),
                                                 static_cast<size_t>(shape.rank()), &output));
  if (output == nullptr) return nullptr;
  void* data = nullptr;
  ThrowIfError(api, api->GetTensorMutableData(output, &data));
  return data;
}

void ComputeNode(const NodeKernel& node, OrtKernelContext* context) {
  const abi::Api* api = node.api;
  const size_t count = node.definition.inputs.size();
  std::vector<Shape> shapes(count);
  std::vector<const void*> inputs(count);
  for (size_t i = 0; i < count; ++i) {
    const OrtValue* value = nullptr;
    ThrowIfError(api, api->KernelContext_GetInput(context, i, &value));
    if (value == nullptr) {
      throw Error(Text(node.name.ToString(), ": input ", node.definition.inputs[i], " is missing"));
    }
    shapes[i] = TensorShape(api, value);
    void* data = nullptr;
    // The API has no const form at this version; the data is only read.
    ThrowIfError(api, api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    inputs[i] = data;
  }
  node.CheckSkip(&shapes);
  const void* skip = nullptr;
  if (node.definition.skip) {
    skip = inputs[1];
    inputs.erase(inputs.begin() + 1);
  }
  const InputShapes checked(node.name, node.inputs, shapes);
  node.kernel->CheckShapes(checked);
  void* outputs[2] = {};
  for (size_t i = 0; i < node.definition.outputs.size(); ++i) {
    outputs[i] = Output(api, context, i, shapes[0]);
  }
  // An output that nobody reads, or nothing to compute.
  if (outputs[0] == nullptr || shapes[0].empty()) return;
  node.kernel->Compute({checked, inputs, skip, outputs[1], outputs[0], Parallel(api, context),
                        node.parameters, node.scratch});
}

OrtStatus* ONNXNORM_ORT_CALL ComputeKernel(void* kernel, OrtKernelContext* context) {
  const NodeKernel& node = *static_cast<const NodeKernel*>(kernel);
  return Guard(node.api, [&] { ComputeNode(node, context); });
}

// The runtime writes a dimension that is neither known nor named as -1 to the output, so each gets
// a name of its own.
void NameUnknownDimensions(const abi::Api* api, OrtTensorTypeAndShapeInfo* info) {
  static std::atomic<uint64_t> counter{0};
  const Shape shape = ReadShape(api, info);
  const size_t rank = static_cast<size_t>(shape.rank());
  std::vector<const char*> names(rank);
  std::vector<std::string> made(rank);
  ThrowIfError(api, api->GetSymbolicDimensions(info, names.data(), rank));
  bool changed = false;
  for (size_t i = 0; i < rank; ++i) {
    if (shape[static_cast<int64_t>(i)] >= 0 || (names[i] != nullptr && names[i][0] != '\0'))
      continue;
    made[i] = "onnxnorm_unknown_" + std::to_string(++counter);
    changed = true;
  }
  if (!changed) return;
  // Setting names replaces the strings that `names` points to: copy them first.
  for (size_t i = 0; i < rank; ++i) {
    if (made[i].empty() && names[i] != nullptr) made[i] = names[i];
  }
  for (size_t i = 0; i < rank; ++i) names[i] = made[i].c_str();
  ThrowIfError(api, api->SetSymbolicDimensions(info, names.data(), rank));
}

abi::ElementType ONNXNORM_ORT_CALL TypeOf(const abi::CustomOp* op, size_t) { return Self(op).type; }

abi::Characteristic ONNXNORM_ORT_CALL Required(const abi::CustomOp*, size_t) {
  return abi::Characteristic::kRequired;
}

int ONNXNORM_ORT_CALL One(const abi::CustomOp*) { return 1; }
int ONNXNORM_ORT_CALL Zero(const abi::CustomOp*) { return 0; }

// Every op reads an element of X before it writes the same element of Y, and no other afterwards.
// Y may take the place of X, and the sum that of skip.
size_t ONNXNORM_ORT_CALL InplacePairs(int** input, int** output) {
  static int inputs[] = {0}, outputs[] = {0};
  *input = inputs;
  *output = outputs;
  return 1;
}

size_t ONNXNORM_ORT_CALL InplacePairsWithSkip(int** input, int** output) {
  static int inputs[] = {0, 1}, outputs[] = {0, 1};
  *input = inputs;
  *output = outputs;
  return 2;
}

void ONNXNORM_ORT_CALL ReleasePairs(int*, int*) {}  // they are static

// Y has X's shape. Wrong shapes are reported when the kernel is created: the runtime
// drops, and leaks, what this returns.
OrtStatus* ONNXNORM_ORT_CALL InferShape(const abi::CustomOp* op, OrtShapeInferContext* context) {
  const abi::Api* api = Self(op).api;
  OrtStatus* status = Guard(api, [&] {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    ThrowIfError(api, api->ShapeInferContext_GetInputTypeShape(context, 0, &info));
    if (ReadShape(api, info).rank() == 0) return;  // unknown
    NameUnknownDimensions(api, info);
    // The sum's shape is left to the model: onnxruntime up to 1.24 aborts where a node has left
    // that output out, and the API does not tell which outputs a node has.
    ThrowIfError(api, api->ShapeInferContext_SetOutputTypeShape(context, 0, info));
  });
  if (status != nullptr) api->ReleaseStatus(status);
  return nullptr;
}

}  // namespace

CpuOp::CpuOp(const abi::Api* op_api, const OpDefinition& op_definition, abi::ElementType op_type,
             const simd::Level& op_level)
    : abi::CustomOp{}, api(op_api), definition(op_definition), type(op_type), level(op_level) {
  version = abi::kApiVersion;
  GetName = [](const abi::CustomOp* op) { return Self(op).definition.name.c_str(); };
  GetExecutionProviderType = [](const abi::CustomOp*) { return "CPUExecutionProvider"; };
  GetInputType = TypeOf;
  GetInputTypeCount = [](const abi::CustomOp* op) { return Self(op).definition.inputs.size(); };
  GetOutputType = TypeOf;
  GetOutputTypeCount = [](const abi::CustomOp* op) { return Self(op).definition.outputs.size(); };
  KernelDestroy = DestroyKernel;
  GetInputCharacteristic = Required;
  GetOutputCharacteristic = [](const abi::CustomOp*, size_t index) {
    return index == 0 ? abi::Characteristic::kRequired : abi::Characteristic::kOptional;
  };
  GetInputMemoryType = [](const abi::CustomOp*, size_t) { return abi::MemoryType::kDefault; };
  GetVariadicInputMinArity = One;
  GetVariadicInputHomogeneity = Zero;
  GetVariadicOutputMinArity = One;
  GetVariadicOutputHomogeneity = Zero;
  CreateKernelV2 = MakeKernel;
  KernelComputeV2 = ComputeKernel;
  InferOutputShapeFn = InferShape;
  GetStartVersion = One;
  GetEndVersion = [](const abi::CustomOp*) { return 1000; };
  GetMayInplace = op_definition.skip ? InplacePairsWithSkip : InplacePairs;
  ReleaseMayInplace = ReleasePairs;
}

}  // namespace onnxnorm
