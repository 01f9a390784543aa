// Compiled only where the official header is found: proves that the hand-written declarations agree
// with it.
#include <onnxruntime_c_api.h>

#include "abi/onnxruntime_abi.h"

namespace onnxnorm::abi {
namespace {

#define SAME(ours, official, field)                                   \
  static_assert(offsetof(ours, field) == offsetof(official, field) && \
                    sizeof(ours::field) == sizeof(official::field),   \
                #ours "::" #field " differs from the official header")

SAME(Api, OrtApi, CreateStatus);
SAME(Api, OrtApi, GetErrorMessage);
SAME(Api, OrtApi, CreateCustomOpDomain);
SAME(Api, OrtApi, CustomOpDomain_Add);
SAME(Api, OrtApi, AddCustomOpDomain);
SAME(Api, OrtApi, GetTensorMutableData);
SAME(Api, OrtApi, CastTypeInfoToTensorInfo);
SAME(Api, OrtApi, GetDimensionsCount);
SAME(Api, OrtApi, GetDimensions);
SAME(Api, OrtApi, GetSymbolicDimensions);
SAME(Api, OrtApi, GetTensorTypeAndShape);
SAME(Api, OrtApi, KernelInfoGetAttribute_float);
SAME(Api, OrtApi, KernelInfoGetAttribute_int64);
SAME(Api, OrtApi, KernelInfoGetAttribute_string);
SAME(Api, OrtApi, KernelContext_GetInputCount);
SAME(Api, OrtApi, KernelContext_GetInput);
SAME(Api, OrtApi, KernelContext_GetOutput);
SAME(Api, OrtApi, ReleaseStatus);
SAME(Api, OrtApi, ReleaseTypeInfo);
SAME(Api, OrtApi, ReleaseTensorTypeAndShapeInfo);
SAME(Api, OrtApi, ReleaseCustomOpDomain);
SAME(Api, OrtApi, KernelInfoGetAttributeArray_int64);
SAME(Api, OrtApi, KernelInfo_GetInputCount);
SAME(Api, OrtApi, KernelInfo_GetInputTypeInfo);
SAME(Api, OrtApi, KernelInfo_GetNodeName);
SAME(Api, OrtApi, ShapeInferContext_GetInputTypeShape);
SAME(Api, OrtApi, ShapeInferContext_SetOutputTypeShape);
SAME(Api, OrtApi, SetSymbolicDimensions);
SAME(Api, OrtApi, KernelContext_ParallelFor);

SAME(ApiBase, OrtApiBase, GetApi);
SAME(ApiBase, OrtApiBase, GetVersionString);

SAME(CustomOp, OrtCustomOp, version);
SAME(CustomOp, OrtCustomOp, CreateKernel);
SAME(CustomOp, OrtCustomOp, GetName);
SAME(CustomOp, OrtCustomOp, GetExecutionProviderType);
SAME(CustomOp, OrtCustomOp, GetInputType);
SAME(CustomOp, OrtCustomOp, GetInputTypeCount);
SAME(CustomOp, OrtCustomOp, GetOutputType);
SAME(CustomOp, OrtCustomOp, GetOutputTypeCount);
SAME(CustomOp, OrtCustomOp, KernelCompute);
SAME(CustomOp, OrtCustomOp, KernelDestroy);
SAME(CustomOp, OrtCustomOp, GetInputCharacteristic);
SAME(CustomOp, OrtCustomOp, GetOutputCharacteristic);
SAME(CustomOp, OrtCustomOp, GetInputMemoryType);
SAME(CustomOp, OrtCustomOp, GetVariadicInputMinArity);
SAME(CustomOp, OrtCustomOp, GetVariadicInputHomogeneity);
SAME(CustomOp, OrtCustomOp, GetVariadicOutputMinArity);
SAME(CustomOp, OrtCustomOp, GetVariadicOutputHomogeneity);
SAME(CustomOp, OrtCustomOp, CreateKernelV2);
SAME(CustomOp, OrtCustomOp, KernelComputeV2);
SAME(CustomOp, OrtCustomOp, InferOutputShapeFn);
SAME(CustomOp, OrtCustomOp, GetStartVersion);
SAME(CustomOp, OrtCustomOp, GetEndVersion);
SAME(CustomOp, OrtCustomOp, GetMayInplace);
SAME(CustomOp, OrtCustomOp, ReleaseMayInplace);
SAME(CustomOp, OrtCustomOp, GetAliasMap);
SAME(CustomOp, OrtCustomOp, ReleaseAliasMap);

static_assert(static_cast<int>(ErrorCode::kFail) == ORT_FAIL);
static_assert(static_cast<int>(ErrorCode::kInvalidArgument) == ORT_INVALID_ARGUMENT);
static_assert(static_cast<int>(ErrorCode::kNotImplemented) == ORT_NOT_IMPLEMENTED);
static_assert(static_cast<int>(ElementType::kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(ElementType::kFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(static_cast<int>(ElementType::kDouble) == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE);
static_assert(static_cast<int>(ElementType::kBFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
static_assert(static_cast<int>(Characteristic::kRequired) == INPUT_OUTPUT_REQUIRED);
static_assert(static_cast<int>(Characteristic::kOptional) == INPUT_OUTPUT_OPTIONAL);
static_assert(static_cast<int>(MemoryType::kDefault) == OrtMemTypeDefault);
static_assert(ORT_API_VERSION >= kApiVersion,
              "the official header is older than what is declared here");

}  // namespace
}  // namespace onnxnorm::abi
