#include "core/op.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "core/error.h"

namespace onnxnorm {
namespace {

std::vector<OpDefinition>& MutableOps() {
  static std::vector<OpDefinition> ops;
  return ops;
}

// The decimal of seven significant digits nearest to a float, as a double. Written without a
// decimal point
// ("1000000e-11"), the number means the same to strtod in every locale.
double SevenDigits(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6e", static_cast<double>(value));
  std::string digits;
  const char* p = text;
  for (; *p != 'e'; ++p) {
    if (*p >= '0' && *p <= '9') digits += *p;
  }
  const long exponent = std::strtol(p + 1, nullptr, 10) - 6;
  return std::strtod((digits + "e" + std::to_string(exponent)).c_str(), nullptr);
}

}  // namespace

std::string NodeName::ToString() const {
  std::string text = std::string(kDomain) + "." + op;
  if (!node.empty()) text += " node '" + node + "'";
  return text;
}

void Attributes::Fail(const char* attribute, const std::string& value,
                      const std::string& right) const {
  throw Error(
      Text(name_.ToString(), ": attribute ", attribute, " is ", value, "; it must be ", right));
}

void Attributes::Check(OrtStatus* status, const char* attribute, const char* type) const {
  if (status == nullptr) return;
  api_->ReleaseStatus(status);
  Fail(attribute, "missing or of another type", type);
}

int64_t Attributes::Int(const char* attribute) const {
  int64_t value = 0;
  Check(api_->KernelInfoGetAttribute_int64(info_, attribute, &value), attribute, "an int");
  return value;
}

bool Attributes::Flag(const char* attribute) const {
  const int64_t value = Int(attribute);
  if (value != 0 && value != 1) Fail(attribute, std::to_string(value), "0 or 1");
  return value == 1;
}

std::vector<int64_t> Attributes::Ints(const char* attribute) const {
  size_t size = 0;
  Check(api_->KernelInfoGetAttributeArray_int64(info_, attribute, nullptr, &size), attribute,
        "a list of ints");
  std::vector<int64_t> values(size);
  if (size == 0) return values;
  Check(api_->KernelInfoGetAttributeArray_int64(info_, attribute, values.data(), &size), attribute,
        "a list of ints");
  return values;
}

double Attributes::Epsilon() const {
  float value = 0;
  Check(api_->KernelInfoGetAttribute_float(info_, "epsilon", &value), "epsilon", "a float");
  if (!(value >= 0) || !std::isfinite(value)) {
    Fail("epsilon", Text(value), "finite and at least 0");
  }
  return SevenDigits(value);
}

Activation Attributes::ReadActivation(const char* attribute) const {
  static constexpr const char* kNames[kActivationCount] = {"none", "relu", "silu", "gelu"};
  static constexpr const char* kRight = "one of 'none', 'relu', 'silu', 'gelu'";
  size_t size = 0;
  Check(api_->KernelInfoGetAttribute_string(info_, attribute, nullptr, &size), attribute, kRight);
  std::string value(size, '\0');
  Check(api_->KernelInfoGetAttribute_string(info_, attribute, value.data(), &size), attribute,
        kRight);
  value.resize(value.find('\0') == std::string::npos ? value.size() : value.find('\0'));
  for (int i = 0; i < kActivationCount; ++i) {
    if (value == kNames[i]) return static_cast<Activation>(i);
  }
  Fail(attribute, "'" + value + "'", kRight);
}

void InputShapes::Fail(size_t i, const std::string& right) const {
  throw Error(Text(name_.ToString(), ": input ", names_[i], " has shape ", shapes_[i].ToString(),
                   "; ", right));
}

void InputShapes::FailAttribute(const char* attribute, const std::string& value,
                                const std::string& right) const {
  throw Error(Text(name_.ToString(), ": attribute ", attribute, " is ", value, "; ", right));
}

void InputShapes::RequireRank(size_t i, int64_t least, const char* layout) const {
  if (shapes_[i].known() && shapes_[i].rank() < least) {
    Fail(i, Text("its rank must be at least ", least, ": ", layout));
  }
}

void InputShapes::RequireVector(size_t i, int64_t length, const std::string& meaning) const {
  const Shape& shape = shapes_[i];
  if (!shape.known()) return;
  if (shape.rank() == 1 && (length < 0 || shape[0] < 0 || shape[0] == length)) return;
  Fail(i, Text("it must be (", length < 0 ? "C" : std::to_string(length), ",), ", meaning));
}

RegisterOp::RegisterOp(OpDefinition definition) {
  std::vector<OpDefinition>& ops = MutableOps();
  ops.push_back(std::move(definition));
  // The order of static objects across files is open; by name it is the same in every build.
  std::sort(ops.begin(), ops.end(),
            [](const OpDefinition& a, const OpDefinition& b) { return a.name < b.name; });
}

OpDefinition SkipForm(OpDefinition definition) {
  definition.name = "Skip" + definition.name;
  definition.inputs.insert(definition.inputs.begin() + 1, "skip");
  definition.outputs.push_back("sum");
  definition.skip = true;
  return definition;
}

OpDefinition BlockedForm(OpDefinition definition) {
  definition.name = "Blocked" + definition.name;
  definition.attributes.push_back("block");
  definition.blocked = true;
  return definition;
}

std::vector<std::string> OpDefinition::KernelInputs() const {
  std::vector<std::string> names = inputs;
  if (skip) names.erase(names.begin() + 1);
  return names;
}

const std::vector<OpDefinition>& RegisteredOps() { return MutableOps(); }

}  // namespace onnxnorm
