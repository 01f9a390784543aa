// Ops as ONNX Runtime's C API sees them.
#pragma once

#include "abi/onnxruntime_abi.h"
#include "core/op.h"

namespace onnxnorm {

/// One op for one element type on one SIMD level. ONNX Runtime keeps pointers to it.
struct CpuOp : abi::CustomOp {
  CpuOp(const abi::Api* api, const OpDefinition& definition, abi::ElementType type,
        const simd::Level& level);

  const abi::Api* api;
  const OpDefinition& definition;
  abi::ElementType type;
  const simd::Level& level;
};

}  // namespace onnxnorm
