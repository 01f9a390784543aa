#include "core/error.h"

namespace onnxnorm {

void ThrowIfError(const abi::Api* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Error(message, abi::ErrorCode::kFail);
}

}  // namespace onnxnorm
