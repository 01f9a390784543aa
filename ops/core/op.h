// What a norm tells the framework about itself: its schema, and a kernel for each element type.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "core/activation.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/shape.h"
#include "core/types.h"
#include "simd/kernels.h"

namespace onnxnorm {

/// The domain of every op here.
inline constexpr const char* kDomain = "onnxnorm";

/// Name and element type, as in ONNX and in the op table.
struct ElementTypeName {
  abi::ElementType type;
  const char* name;
};

/// The element types that every op has a kernel for.
inline constexpr ElementTypeName kElementTypes[] = {
    {abi::ElementType::kFloat, "float32"},
    {abi::ElementType::kFloat16, "float16"},
    {abi::ElementType::kDouble, "float64"},
    {abi::ElementType::kBFloat16, "bfloat16"},
};

/// "onnxnorm.GroupNorm node 'norm1'": how every message about a node begins.
struct NodeName {
  std::string op;
  std::string node;
  std::string ToString() const;
};

/// Reads a node's attributes. What is missing or of another type is an error that says so.
class Attributes {
 public:
  Attributes(const abi::Api* api, const OrtKernelInfo* info, NodeName name, bool blocked)
      : api_(api), info_(info), name_(std::move(name)), blocked_(blocked) {}

  const NodeName& name() const { return name_; }
  /// Whether the op is the blocked form of another: OpDefinition::blocked.
  bool blocked() const { return blocked_; }
  int64_t Int(const char* attribute) const;
  bool Flag(const char* attribute) const;
  std::vector<int64_t> Ints(const char* attribute) const;
  /// `epsilon`: finite and at least 0. The decimal of seven digits that the float stands for:
  /// 1e-5f is read as 1e-5.
  double Epsilon() const;
  /// An attribute that is one of none, relu, silu, gelu.
  Activation ReadActivation(const char* attribute = "activation") const;

  /// Throws: attribute `attribute` is `value`; it must be `right`.
  [[noreturn]] void Fail(const char* attribute, const std::string& value,
                         const std::string& right) const;

 private:
  void Check(OrtStatus* status, const char* attribute, const char* type) const;

  const abi::Api* api_;
  const OrtKernelInfo* info_;
  NodeName name_;
  bool blocked_;
};

/// The input shapes of a node, and checks of them that pass over what is not known yet.
class InputShapes {
 public:
  InputShapes(const NodeName& name, const std::vector<std::string>& names,
              const std::vector<Shape>& shapes)
      : name_(name), names_(names), shapes_(shapes) {}

  const Shape& operator[](size_t i) const { return shapes_[i]; }
  /// Input i has at least that rank.
  void RequireRank(size_t i, int64_t least, const char* layout) const;
  /// Input i is a vector of that length (unknown if negative), which is `meaning`.
  void RequireVector(size_t i, int64_t length, const std::string& meaning) const;
  /// Throws: input i has its shape; `right`.
  [[noreturn]] void Fail(size_t i, const std::string& right) const;
  /// Throws: attribute `attribute` is `value`; `right`. For what an attribute asks of a shape.
  [[noreturn]] void FailAttribute(const char* attribute, const std::string& value,
                                  const std::string& right) const;

 private:
  const NodeName& name_;
  const std::vector<std::string>& names_;
  const std::vector<Shape>& shapes_;
};

/// One run of a kernel on tensors that are not empty: the pointers, the checked shapes, and the
/// thread pool.
struct Run {
  const InputShapes& shapes;
  const std::vector<const void*>& inputs;
  /// Skip forms: what is added to X first, and where the sum goes, null if nobody reads it.
  const void* skip;
  void* sum;
  void* output;
  Parallel parallel;
  /// Memory for the parameters in double, and for the plan.
  ScratchCache& parameters;
  ScratchCache& scratch;

  template <typename T>
  const T* Input(size_t i) const {
    return static_cast<const T*>(inputs[i]);
  }
  template <typename T>
  T* Output() const {
    return static_cast<T*>(output);
  }
};

/// A node's kernel: its validated attributes. Y has the shape of X.
class Kernel {
 public:
  virtual ~Kernel() = default;
  /// Throws if the shapes are wrong as far as they are known.
  virtual void CheckShapes(const InputShapes& shapes) const = 0;
  /// Computes Y. Called only with shapes that passed the check and have elements; from several
  /// threads at once.
  virtual void Compute(const Run& run) const = 0;
};

/// One op of the library.
struct OpDefinition {
  std::string name;
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  std::vector<std::string> attributes;
  /// Makes the kernel for element type `type` on SIMD level `level`.
  std::unique_ptr<Kernel> (*create)(const Attributes& attributes, abi::ElementType type,
                                    const simd::Level& level);
  /// Whether input 1 is `skip`, which the kernel meets in Run::skip and not among its inputs, and
  /// output 1 the sum of X and skip.
  bool skip = false;
  /// Whether the channels lie in blocks, as in ONNX Runtime's NCHWc layout: a tensor of the shape
  /// (N, C, positions) holds (N, C / block, positions, block). `block` is the last attribute.
  bool blocked = false;

  /// The inputs that the kernel knows: all but `skip`.
  std::vector<std::string> KernelInputs() const;
};

/// Makes KernelTemplate<T> for the element type.
template <template <typename> class KernelTemplate>
std::unique_ptr<Kernel> CreateFor(const Attributes& attributes, abi::ElementType type,
                                  const simd::Level& level) {
  switch (type) {
    case abi::ElementType::kFloat16:
      return std::make_unique<KernelTemplate<half_t>>(attributes, level);
    case abi::ElementType::kBFloat16:
      return std::make_unique<KernelTemplate<bfloat16_t>>(attributes, level);
    case abi::ElementType::kDouble:
      return std::make_unique<KernelTemplate<double>>(attributes, level);
    default:
      return std::make_unique<KernelTemplate<float>>(attributes, level);
  }
}

/// Adds an op to the library; every norms/*/cpu.cc has one as a static object.
class RegisterOp {
 public:
  explicit RegisterOp(OpDefinition definition);
};

/// The skip form of an op: Skip<Name>(X, skip, ...) -> (Y, sum), the op of sum = X + skip.
OpDefinition SkipForm(OpDefinition definition);
/// The blocked form of an op that has the attribute channels_last: Blocked<Name>, with one more
/// attribute, `block`.
OpDefinition BlockedForm(OpDefinition definition);

/// The registered ops, by name.
const std::vector<OpDefinition>& RegisteredOps();

}  // namespace onnxnorm
