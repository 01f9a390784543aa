// Errors inside the library are exceptions; custom_op.cc and library.cc turn them into statuses at
// the C boundary.
#pragma once

#include <locale>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

#include "abi/onnxruntime_abi.h"

namespace onnxnorm {

/// An error that the user can act on: one line that names the op, the node, the value and what
/// would be right.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, abi::ErrorCode code = abi::ErrorCode::kInvalidArgument)
      : std::runtime_error(message), code_(code) {}
  abi::ErrorCode code() const { return code_; }

 private:
  abi::ErrorCode code_;
};

/// The arguments, written one after the other.
template <typename... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << parts);
  return out.str();
}

/// Runs `body` and turns whatever it throws into a status.
template <typename Body>
OrtStatus* Guard(const abi::Api* api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return api->CreateStatus(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(abi::ErrorCode::kFail, "onnxnorm: out of memory");
  } catch (const std::exception& error) {
    return api->CreateStatus(abi::ErrorCode::kFail, error.what());
  } catch (...) {
    return api->CreateStatus(abi::ErrorCode::kFail, "onnxnorm: unknown error");
  }
}

/// Throws an Error with the runtime's own message if `status` is one.
void ThrowIfError(const abi::Api* api, OrtStatus* status);

}  // namespace onnxnorm
