// The op table: what the library holds, for tests and `onnxnorm ops`.
#pragma once

#include <string>

namespace onnxnorm {

/// JSON, derived from the definitions that the ops are registered from.
std::string OpTable();

}  // namespace onnxnorm
