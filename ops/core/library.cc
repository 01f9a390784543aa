// The two functions that the library exports.
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "core/cpu_target.h"
#include "core/custom_op.h"
#include "core/error.h"
#include "core/op_table.h"

#if defined(_WIN32)
#define ONNXNORM_EXPORT extern "C" __declspec(dllexport)
#else
#define ONNXNORM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace onnxnorm {
namespace {

// The domain with all ops on one SIMD level, as one runtime knows it. Sessions point to it for as
// long as they live, so it is never freed; it is made once for all sessions.
struct Domain {
  const abi::Api* api;
  const simd::Level* level;
  std::vector<std::unique_ptr<CpuOp>> ops;
  OrtCustomOpDomain* domain = nullptr;

  Domain(const abi::Api* domain_api, const simd::Level& domain_level)
      : api(domain_api), level(&domain_level) {
    ThrowIfError(api, api->CreateCustomOpDomain(kDomain, &domain));
    for (const OpDefinition& definition : RegisteredOps()) {
      for (const ElementTypeName& type : kElementTypes) {
        ops.push_back(std::make_unique<CpuOp>(api, definition, type.type, domain_level));
        ThrowIfError(api, api->CustomOpDomain_Add(domain, ops.back().get()));
      }
    }
  }
};

OrtCustomOpDomain* DomainFor(const abi::Api* api, const simd::Level& level) {
  static std::mutex mutex;
  static auto* domains = new std::vector<std::unique_ptr<Domain>>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& domain : *domains) {
    if (domain->api == api && domain->level == &level) return domain->domain;
  }
  domains->push_back(std::make_unique<Domain>(api, level));
  return domains->back()->domain;
}

// An error that every runtime can make: the first version's table begins with CreateStatus.
OrtStatus* TooOld(const abi::ApiBase* base) noexcept {
  const abi::Api* oldest = base->GetApi(1);
  if (oldest == nullptr) return nullptr;
  try {
    return oldest->CreateStatus(abi::ErrorCode::kNotImplemented,
                                Text("onnxnorm needs onnxruntime ", abi::kOldestRuntime,
                                     " or newer; this is onnxruntime ", base->GetVersionString())
                                    .c_str());
  } catch (...) {
    return oldest->CreateStatus(abi::ErrorCode::kFail, "onnxnorm needs a newer onnxruntime");
  }
}

}  // namespace
}  // namespace onnxnorm

/// Adds the domain `onnxnorm` to a session's options.
ONNXNORM_EXPORT OrtStatus* ONNXNORM_ORT_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                               const onnxnorm::abi::ApiBase* base) {
  using namespace onnxnorm;
  const abi::Api* api = base->GetApi(abi::kApiVersion);
  if (api == nullptr) return TooOld(base);
  return Guard(api, [&] {
    ThrowIfError(api, api->AddCustomOpDomain(options, DomainFor(api, SelectLevel())));
  });
}

/// What the library holds, as JSON. The string lives as long as the library; `cpu_target` is what a
/// registration now would use, or why it would fail.
ONNXNORM_EXPORT const char* OnnxnormOpTable(void) {
  using namespace onnxnorm;
  static std::mutex mutex;
  static auto* tables = new std::list<std::string>;
  try {
    const std::string table = OpTable();
    const std::lock_guard<std::mutex> lock(mutex);
    for (const std::string& known : *tables) {
      if (known == table) return known.c_str();
    }
    tables->push_back(table);
    return tables->back().c_str();
  } catch (...) {
    return "{}";
  }
}
