#include "core/op_table.h"

#include "core/cpu_target.h"
#include "core/error.h"
#include "core/op.h"
#include "core/other_copies.h"

namespace onnxnorm {
namespace {

std::string Quoted(const std::string& text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

template <typename List, typename Name>
std::string QuotedList(const List& list, const Name& name) {
  std::string out = "[";
  for (const auto& item : list) out += (out.size() > 1 ? ", " : "") + Quoted(name(item));
  return out + "]";
}

std::string QuotedList(const std::vector<std::string>& list) {
  return QuotedList(list, [](const std::string& item) { return item; });
}

std::string CpuTarget() {
  try {
    return SelectLevel().name;
  } catch (const Error& error) {
    return error.what();
  }
}

std::string OpEntry(const OpDefinition& op) {
  return "{\"name\": " + Quoted(op.name) + ", \"domain\": " + Quoted(kDomain) +
         ", \"since_version\": 1, \"provider\": \"cpu\", \"dtypes\": " +
         QuotedList(kElementTypes, [](const ElementTypeName& type) { return type.name; }) +
         ", \"inputs\": " + QuotedList(op.inputs) + ", \"outputs\": " + QuotedList(op.outputs) +
         ", \"attributes\": " + QuotedList(op.attributes) + "}";
}

}  // namespace

std::string OpTable() {
  std::string ops;
  for (const OpDefinition& op : RegisteredOps()) {
    ops += (ops.empty() ? "" : ", ") + OpEntry(op);
  }
  return "{\"version\": " + Quoted(ONNXNORM_VERSION) +
         ", \"registered\": " + (IsRegistered() ? "true" : "false") +
         ", \"ort_api\": " + std::to_string(abi::kApiVersion) +
         ", \"cpu_target\": " + Quoted(CpuTarget()) + ", \"ops\": [" + ops + "]}";
}

}  // namespace onnxnorm
