// The two functions that the library exports.
#include <memory>
#include <string>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "core/cpu_target.h"
#include "core/custom_op.h"
#include "core/error.h"
#include "core/op_table.h"
#include "core/other_copies.h"
#include "core/push_list.h"

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

// Two threads that come first at once make a domain each; both serve.
OrtCustomOpDomain* DomainFor(const abi::Api* api, const simd::Level& level) {
  static PushList<std::unique_ptr<Domain>> domains;
  const auto fits = [&](const auto& known) { return known->api == api && known->level == &level; };
  if (const auto* known = domains.Find(fits)) return (*known)->domain;
  return domains.Push(std::make_unique<Domain>(api, level))->domain;
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
    RefuseOtherVersions();
    ThrowIfError(api, api->AddCustomOpDomain(options, DomainFor(api, SelectLevel())));
    MarkRegistered();
  });
}

/// What the library holds, as JSON. The string lives as long as the library; `cpu_target` is what a
/// registration now would use, or why it would fail.
ONNXNORM_EXPORT const char* OnnxnormOpTable(void) {
  using namespace onnxnorm;
  static PushList<std::string> tables;
  try {
    const std::string table = OpTable();
    const auto* known = tables.Find([&](const std::string& other) { return other == table; });
    return (known != nullptr ? *known : tables.Push(table)).c_str();
  } catch (...) {
    return "{}";
  }
}
