// The test host: a program that plays ONNX Runtime's part for the kernel tests (tests/ops/host.py
// speaks to it), so that the sanitizers see all of a run.
//
//     onnxnorm_host LIBRARY < requests > answers
//
// Numbers are 64-bit integers in the machine's order; a string or a block of bytes has its length
// in front. An answer begins with 0, or with 1 and a message.
#include <cstdio>
#include <cstdlib>
#include <map>

#include "testing/session.h"

namespace onnxnorm::testing {
namespace {

enum class Request : int64_t { kTable = 1, kRegister = 2, kCreate = 3, kRun = 4, kDestroy = 5 };

/// The caller is gone in the middle of a request.
struct Ended {};

void ReadBytes(void* out, size_t size) {
  if (size > 0 && std::fread(out, 1, size, stdin) != size) throw Ended();
}

int64_t ReadInt() {
  int64_t value = 0;
  ReadBytes(&value, sizeof value);
  return value;
}

size_t ReadSize() { return static_cast<size_t>(ReadInt()); }

std::string ReadText() {
  std::string text(ReadSize(), '\0');
  ReadBytes(text.data(), text.size());
  return text;
}

std::vector<int64_t> ReadInts() {
  std::vector<int64_t> values(ReadSize());
  for (int64_t& value : values) value = ReadInt();
  return values;
}

void WriteBytes(const void* data, size_t size) {
  if (size > 0) std::fwrite(data, 1, size, stdout);
}

void WriteInt(int64_t value) { WriteBytes(&value, sizeof value); }

void WriteText(const std::string& text) {
  WriteInt(static_cast<int64_t>(text.size()));
  WriteBytes(text.data(), text.size());
}

void WriteInts(const std::vector<int64_t>& values) {
  WriteInt(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) WriteInt(value);
}

Declared ReadDeclared() {
  Declared declared;
  declared.type = static_cast<abi::ElementType>(ReadInt());
  declared.ranked = ReadInt() != 0;
  declared.dims = ReadInts();
  for (size_t i = 0; i < declared.dims.size(); ++i) declared.names.push_back(ReadText());
  return declared;
}

Attribute ReadAttribute() {
  Attribute attribute;
  attribute.name = ReadText();
  switch (ReadInt()) {
    case 0:
      attribute.value = ReadInt();
      break;
    case 1: {
      double value = 0;
      ReadBytes(&value, sizeof value);
      attribute.value = static_cast<float>(value);
      break;
    }
    case 2:
      attribute.value = ReadText();
      break;
    default:
      attribute.value = ReadInts();
  }
  return attribute;
}

OrtValue ReadValue() {
  OrtValue value{static_cast<abi::ElementType>(ReadInt()), ReadInts(), nullptr};
  const size_t bytes = ReadSize();
  value.memory = std::make_unique<Memory>(bytes, BytesOf(value.type));
  ReadBytes(value.memory->data(), bytes);
  return value;
}

// The SIMD level that the library is to take: the variable is read when it is registered.
void ReadLevel() {
  const std::string level = ReadText();
  if (level.empty()) {
    unsetenv("ONNXNORM_CPU_TARGET");
  } else {
    setenv("ONNXNORM_CPU_TARGET", level.c_str(), 1);
  }
}

NodeDescription ReadNode() {
  NodeDescription node;
  node.threads = ReadSize();
  node.op = ReadText();
  node.info.node = ReadText();
  for (size_t left = ReadSize(); left > 0; --left) node.info.inputs.push_back(ReadDeclared());
  for (size_t left = ReadSize(); left > 0; --left) node.info.attributes.push_back(ReadAttribute());
  for (const int64_t wanted : ReadInts()) node.wanted.push_back(wanted != 0);
  node.info.outputs = node.wanted.size();
  return node;
}

class Host {
 public:
  explicit Host(const char* path) : library_(path) {}

  void Answer(Request request) {
    switch (request) {
      case Request::kTable:
        ReadLevel();
        WriteInt(0);
        return WriteText(library_.OpTable());
      case Request::kRegister: {
        ReadLevel();
        OrtSessionOptions options;
        Check(library_.RegisterCustomOps(&options, HostApiBase()));
        return WriteInt(0);
      }
      case Request::kCreate:
        return Create();
      case Request::kRun:
        return Run();
      case Request::kDestroy:
        sessions_.erase(ReadInt());
        return WriteInt(0);
    }
    throw std::runtime_error("no such request");
  }

 private:
  void Create() {
    ReadLevel();
    auto session = std::make_unique<Session>(library_, ReadNode());
    WriteInt(0);
    WriteInt(++last_);
    WriteInt(static_cast<int64_t>(session->outputs().size()));
    for (const Declared& output : session->outputs()) {
      WriteInt(static_cast<int64_t>(output.type));
      WriteInt(output.ranked ? 1 : 0);
      WriteInts(output.dims);
      for (size_t i = 0; i < output.dims.size(); ++i) {
        WriteText(i < output.names.size() ? output.names[i] : "");
      }
    }
    sessions_[last_] = std::move(session);
  }

  void Run() {
    Session& session = *sessions_.at(ReadInt());
    std::vector<OrtValue> inputs;
    for (size_t left = ReadSize(); left > 0; --left) inputs.push_back(ReadValue());
    const auto outputs = session.Run(inputs);
    WriteInt(0);
    WriteInt(static_cast<int64_t>(outputs.size()));
    for (const auto& output : outputs) {
      WriteInt(output != nullptr ? 1 : 0);
      if (output == nullptr) continue;
      WriteInt(static_cast<int64_t>(output->type));
      WriteInts(output->dims);
      WriteInt(static_cast<int64_t>(output->memory->bytes()));
      WriteBytes(output->memory->data(), output->memory->bytes());
    }
  }

  Library library_;
  std::map<int64_t, std::unique_ptr<Session>> sessions_;
  int64_t last_ = 0;
};

// Whatever the library took of the runtime and did not give back.
void CheckLeaks() {
  const int left = live_statuses + live_type_infos + live_shape_infos;
  if (left != 0) {
    throw std::runtime_error("the library kept " + std::to_string(left) +
                             " of the runtime's statuses, types and shapes");
  }
}

int Serve(const char* path) {
  Host host(path);
  for (;;) {
    Request request;
    try {
      request = static_cast<Request>(ReadInt());
    } catch (const Ended&) {
      return 0;
    }
    try {
      host.Answer(request);
    } catch (const NodeError& error) {
      WriteInt(1);
      WriteText(error.what());
    }
    CheckLeaks();
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace onnxnorm::testing

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: onnxnorm_host LIBRARY\n");
    return 2;
  }
  try {
    return onnxnorm::testing::Serve(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "onnxnorm_host: %s\n", error.what());
  } catch (...) {
    std::fprintf(stderr, "onnxnorm_host: the caller ended in the middle of a request\n");
  }
  return 1;
}
