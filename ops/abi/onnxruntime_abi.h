// The part of ONNX Runtime's C ABI that this library uses, declared by hand.
//
// The ABI is a table of function pointers that only ever grows at its end, so a field is fully
// described by its slot number and its signature. One version is fixed here; every runtime from
// that version on serves it unchanged.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ONNXNORM_ORT_CALL __stdcall
#else
#define ONNXNORM_ORT_CALL
#endif

// Opaque types of ONNX Runtime. Their names are part of no symbol: the two exported functions have
// C linkage.
struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;

namespace onnxnorm::abi {

/// The API version that this library asks for. 17 brings ParallelFor, 18 MayInplace.
inline constexpr uint32_t kApiVersion = 18;
/// The oldest onnxruntime release that is supported and tested.
inline constexpr const char* kOldestRuntime = "1.20";

/// Error codes of OrtStatus.
enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

/// Element types of tensors.
enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kFloat16 = 10,
  kDouble = 11,
  kBFloat16 = 16,
};

/// Whether an input or output must be there.
enum class Characteristic : int { kRequired = 0, kOptional = 1 };

/// Where an input must lie.
enum class MemoryType : int { kDefault = 0 };

/// Stands for slots that are not used here.
template <size_t kFirst, size_t kLast>
struct Unused {
  void* slots[kLast - kFirst + 1];
};

// clang-format off
/// The function table. The number behind each field is its slot.
struct Api {
  OrtStatus*(ONNXNORM_ORT_CALL* CreateStatus)(ErrorCode code, const char* message);                                  // 0
  Unused<1, 1> unused_1;
  const char*(ONNXNORM_ORT_CALL* GetErrorMessage)(const OrtStatus* status);                                          // 2
  Unused<3, 25> unused_3;
  OrtStatus*(ONNXNORM_ORT_CALL* CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);                  // 26
  OrtStatus*(ONNXNORM_ORT_CALL* CustomOpDomain_Add)(OrtCustomOpDomain* domain, const struct CustomOp* op);           // 27
  OrtStatus*(ONNXNORM_ORT_CALL* AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);           // 28
  Unused<29, 50> unused_29;
  OrtStatus*(ONNXNORM_ORT_CALL* GetTensorMutableData)(OrtValue* value, void** out);                                  // 51
  Unused<52, 54> unused_52;
  OrtStatus*(ONNXNORM_ORT_CALL* CastTypeInfoToTensorInfo)(const OrtTypeInfo* type,
                                                          const OrtTensorTypeAndShapeInfo** out);                    // 55
  Unused<56, 60> unused_56;
  OrtStatus*(ONNXNORM_ORT_CALL* GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);             // 61
  OrtStatus*(ONNXNORM_ORT_CALL* GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank);   // 62
  OrtStatus*(ONNXNORM_ORT_CALL* GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                                       size_t rank);                                                 // 63
  Unused<64, 64> unused_64;
  OrtStatus*(ONNXNORM_ORT_CALL* GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);      // 65
  Unused<66, 84> unused_66;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name,
                                                              float* out);                                           // 85
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name,
                                                              int64_t* out);                                         // 86
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name,
                                                               char* out, size_t* size);                             // 87
  OrtStatus*(ONNXNORM_ORT_CALL* KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* out);          // 88
  Unused<89, 89> unused_89;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelContext_GetInput)(const OrtKernelContext* context, size_t index,
                                                        const OrtValue** out);                                       // 90
  OrtStatus*(ONNXNORM_ORT_CALL* KernelContext_GetOutput)(OrtKernelContext* context, size_t index,
                                                         const int64_t* dims, size_t rank, OrtValue** out);          // 91
  Unused<92, 92> unused_92;
  void(ONNXNORM_ORT_CALL* ReleaseStatus)(OrtStatus* status);                                                         // 93
  Unused<94, 97> unused_94;
  void(ONNXNORM_ORT_CALL* ReleaseTypeInfo)(OrtTypeInfo* info);                                                       // 98
  void(ONNXNORM_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);                           // 99
  Unused<100, 100> unused_100;
  void(ONNXNORM_ORT_CALL* ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);                                         // 101
  Unused<102, 162> unused_102;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name,
                                                                   int64_t* out, size_t* size);                      // 163
  Unused<164, 229> unused_164;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* out);                   // 230
  Unused<231, 233> unused_231;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfo_GetInputTypeInfo)(const OrtKernelInfo* info, size_t index,
                                                             OrtTypeInfo** out);                                     // 234
  Unused<235, 243> unused_235;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);         // 244
  Unused<245, 267> unused_245;
  OrtStatus*(ONNXNORM_ORT_CALL* ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                                     OrtTensorTypeAndShapeInfo** out);               // 268
  Unused<269, 269> unused_269;
  OrtStatus*(ONNXNORM_ORT_CALL* ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                                      const OrtTensorTypeAndShapeInfo* info);        // 270
  OrtStatus*(ONNXNORM_ORT_CALL* SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names,
                                                       size_t rank);                                                 // 271
  Unused<272, 273> unused_272;
  OrtStatus*(ONNXNORM_ORT_CALL* KernelContext_ParallelFor)(const OrtKernelContext* context,
                                                           void (*body)(void*, size_t), size_t total,
                                                           size_t batches, void* data);                              // 274
};

/// The runtime's entry point, handed to RegisterCustomOps.
struct ApiBase {
  const Api*(ONNXNORM_ORT_CALL* GetApi)(uint32_t version);  // 0
  const char*(ONNXNORM_ORT_CALL* GetVersionString)();       // 1
};

/// What the runtime asks of a custom op. The number behind each field is its slot.
struct CustomOp {
  uint32_t version;                                                                                                  // 0
  void*(ONNXNORM_ORT_CALL* CreateKernel)(const CustomOp* op, const Api* api, const OrtKernelInfo* info);             // 1
  const char*(ONNXNORM_ORT_CALL* GetName)(const CustomOp* op);                                                       // 2
  const char*(ONNXNORM_ORT_CALL* GetExecutionProviderType)(const CustomOp* op);                                      // 3
  ElementType(ONNXNORM_ORT_CALL* GetInputType)(const CustomOp* op, size_t index);                                    // 4
  size_t(ONNXNORM_ORT_CALL* GetInputTypeCount)(const CustomOp* op);                                                  // 5
  ElementType(ONNXNORM_ORT_CALL* GetOutputType)(const CustomOp* op, size_t index);                                   // 6
  size_t(ONNXNORM_ORT_CALL* GetOutputTypeCount)(const CustomOp* op);                                                 // 7
  void(ONNXNORM_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext* context);                                   // 8
  void(ONNXNORM_ORT_CALL* KernelDestroy)(void* kernel);                                                              // 9
  Characteristic(ONNXNORM_ORT_CALL* GetInputCharacteristic)(const CustomOp* op, size_t index);                       // 10
  Characteristic(ONNXNORM_ORT_CALL* GetOutputCharacteristic)(const CustomOp* op, size_t index);                      // 11
  MemoryType(ONNXNORM_ORT_CALL* GetInputMemoryType)(const CustomOp* op, size_t index);                               // 12
  int(ONNXNORM_ORT_CALL* GetVariadicInputMinArity)(const CustomOp* op);                                              // 13
  int(ONNXNORM_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp* op);                                           // 14
  int(ONNXNORM_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp* op);                                             // 15
  int(ONNXNORM_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp* op);                                          // 16
  OrtStatus*(ONNXNORM_ORT_CALL* CreateKernelV2)(const CustomOp* op, const Api* api, const OrtKernelInfo* info,
                                                void** kernel);                                                      // 17
  OrtStatus*(ONNXNORM_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext* context);                           // 18
  OrtStatus*(ONNXNORM_ORT_CALL* InferOutputShapeFn)(const CustomOp* op, OrtShapeInferContext* context);              // 19
  int(ONNXNORM_ORT_CALL* GetStartVersion)(const CustomOp* op);                                                       // 20
  int(ONNXNORM_ORT_CALL* GetEndVersion)(const CustomOp* op);                                                         // 21
  size_t(ONNXNORM_ORT_CALL* GetMayInplace)(int** input_index, int** output_index);                                   // 22
  void(ONNXNORM_ORT_CALL* ReleaseMayInplace)(int* input_index, int* output_index);                                   // 23
  size_t(ONNXNORM_ORT_CALL* GetAliasMap)(int** input_index, int** output_index);                                     // 24
  void(ONNXNORM_ORT_CALL* ReleaseAliasMap)(int* input_index, int* output_index);                                     // 25
};
// clang-format on

#define ONNXNORM_SLOT(type, field, slot)                                           \
  static_assert(offsetof(type, field) == (slot) * sizeof(void*), #type "::" #field \
                                                                       " is "      \
                                                                       "misplaced")

ONNXNORM_SLOT(Api, CreateStatus, 0);
ONNXNORM_SLOT(Api, GetErrorMessage, 2);
ONNXNORM_SLOT(Api, CreateCustomOpDomain, 26);
ONNXNORM_SLOT(Api, CustomOpDomain_Add, 27);
ONNXNORM_SLOT(Api, AddCustomOpDomain, 28);
ONNXNORM_SLOT(Api, GetTensorMutableData, 51);
ONNXNORM_SLOT(Api, CastTypeInfoToTensorInfo, 55);
ONNXNORM_SLOT(Api, GetDimensionsCount, 61);
ONNXNORM_SLOT(Api, GetDimensions, 62);
ONNXNORM_SLOT(Api, GetSymbolicDimensions, 63);
ONNXNORM_SLOT(Api, GetTensorTypeAndShape, 65);
ONNXNORM_SLOT(Api, KernelInfoGetAttribute_float, 85);
ONNXNORM_SLOT(Api, KernelInfoGetAttribute_int64, 86);
ONNXNORM_SLOT(Api, KernelInfoGetAttribute_string, 87);
ONNXNORM_SLOT(Api, KernelContext_GetInputCount, 88);
ONNXNORM_SLOT(Api, KernelContext_GetInput, 90);
ONNXNORM_SLOT(Api, KernelContext_GetOutput, 91);
ONNXNORM_SLOT(Api, ReleaseStatus, 93);
ONNXNORM_SLOT(Api, ReleaseTypeInfo, 98);
ONNXNORM_SLOT(Api, ReleaseTensorTypeAndShapeInfo, 99);
ONNXNORM_SLOT(Api, ReleaseCustomOpDomain, 101);
ONNXNORM_SLOT(Api, KernelInfoGetAttributeArray_int64, 163);
ONNXNORM_SLOT(Api, KernelInfo_GetInputCount, 230);
ONNXNORM_SLOT(Api, KernelInfo_GetInputTypeInfo, 234);
ONNXNORM_SLOT(Api, KernelInfo_GetNodeName, 244);
ONNXNORM_SLOT(Api, ShapeInferContext_GetInputTypeShape, 268);
ONNXNORM_SLOT(Api, ShapeInferContext_SetOutputTypeShape, 270);
ONNXNORM_SLOT(Api, SetSymbolicDimensions, 271);
ONNXNORM_SLOT(Api, KernelContext_ParallelFor, 274);

ONNXNORM_SLOT(ApiBase, GetApi, 0);
ONNXNORM_SLOT(ApiBase, GetVersionString, 1);

ONNXNORM_SLOT(CustomOp, CreateKernel, 1);
ONNXNORM_SLOT(CustomOp, GetName, 2);
ONNXNORM_SLOT(CustomOp, GetExecutionProviderType, 3);
ONNXNORM_SLOT(CustomOp, GetInputType, 4);
ONNXNORM_SLOT(CustomOp, GetInputTypeCount, 5);
ONNXNORM_SLOT(CustomOp, GetOutputType, 6);
ONNXNORM_SLOT(CustomOp, GetOutputTypeCount, 7);
ONNXNORM_SLOT(CustomOp, KernelCompute, 8);
ONNXNORM_SLOT(CustomOp, KernelDestroy, 9);
ONNXNORM_SLOT(CustomOp, GetInputCharacteristic, 10);
ONNXNORM_SLOT(CustomOp, GetOutputCharacteristic, 11);
ONNXNORM_SLOT(CustomOp, GetInputMemoryType, 12);
ONNXNORM_SLOT(CustomOp, GetVariadicInputMinArity, 13);
ONNXNORM_SLOT(CustomOp, GetVariadicInputHomogeneity, 14);
ONNXNORM_SLOT(CustomOp, GetVariadicOutputMinArity, 15);
ONNXNORM_SLOT(CustomOp, GetVariadicOutputHomogeneity, 16);
ONNXNORM_SLOT(CustomOp, CreateKernelV2, 17);
ONNXNORM_SLOT(CustomOp, KernelComputeV2, 18);
ONNXNORM_SLOT(CustomOp, InferOutputShapeFn, 19);
ONNXNORM_SLOT(CustomOp, GetStartVersion, 20);
ONNXNORM_SLOT(CustomOp, GetEndVersion, 21);
ONNXNORM_SLOT(CustomOp, GetMayInplace, 22);
ONNXNORM_SLOT(CustomOp, ReleaseMayInplace, 23);
ONNXNORM_SLOT(CustomOp, GetAliasMap, 24);
ONNXNORM_SLOT(CustomOp, ReleaseAliasMap, 25);

#undef ONNXNORM_SLOT

}  // namespace onnxnorm::abi
