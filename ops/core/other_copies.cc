#include "core/other_copies.h"

#include <atomic>
#include <string>
#include <vector>

#include "core/error.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#define PSAPI_VERSION 2  // EnumProcessModules of kernel32
#include <psapi.h>
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#include <mach-o/dyld.h>
#elif defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace onnxnorm {
namespace {

std::atomic<bool> registered{false};

/// A loaded shared object that has an op table.
struct Copy {
  const void* place;
  std::string path;
  const char* (*table)();
};

constexpr const char* kTableName = "OnnxnormOpTable";

#if defined(_WIN32)

std::string PathOf(HMODULE module) {
  char path[MAX_PATH] = "";
  GetModuleFileNameA(module, path, MAX_PATH);
  return path;
}

/// This copy; its table is of no interest.
Copy ThisCopy() {
  HMODULE module = nullptr;
  GetModuleHandleExA(
      GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
      reinterpret_cast<const char*>(&registered), &module);
  return {module, PathOf(module), nullptr};
}

void StayLoaded() {
  HMODULE module = nullptr;
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
                     reinterpret_cast<const char*>(&registered), &module);
}

std::vector<Copy> LoadedCopies() {
  std::vector<HMODULE> modules(1024);
  DWORD bytes = 0;
  if (!EnumProcessModules(GetCurrentProcess(), modules.data(),
                          static_cast<DWORD>(modules.size() * sizeof(HMODULE)), &bytes)) {
    return {};
  }
  if (bytes / sizeof(HMODULE) < modules.size()) modules.resize(bytes / sizeof(HMODULE));
  std::vector<Copy> copies;
  for (HMODULE module : modules) {
    const auto table = reinterpret_cast<const char* (*)()>(GetProcAddress(module, kTableName));
    if (table != nullptr) copies.push_back({module, PathOf(module), table});
  }
  return copies;
}

#elif defined(__APPLE__) || defined(__linux__)

Copy ThisCopy() {
  Dl_info info{};
  if (dladdr(&registered, &info) == 0) return {nullptr, "", nullptr};
  return {info.dli_fbase, info.dli_fname, nullptr};
}

// A handle that is never closed.
void StayLoaded() { dlopen(ThisCopy().path.c_str(), RTLD_NOLOAD | RTLD_LAZY); }

#if defined(__APPLE__)
std::vector<std::string> LoadedNames() {
  std::vector<std::string> names;
  for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const char* name = _dyld_get_image_name(i);
    if (name != nullptr) names.push_back(name);
  }
  return names;
}
#else
std::vector<std::string> LoadedNames() {
  std::vector<std::string> names;
  // Nothing may be opened inside the walk, which holds the loader's lock.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        if (info->dlpi_name != nullptr && info->dlpi_name[0] != '\0') {
          static_cast<std::vector<std::string>*>(data)->push_back(info->dlpi_name);
        }
        return 0;
      },
      &names);
  return names;
}
#endif

/// The table of the object `name` itself: looking it up also searches the object's dependencies.
void AddCopy(const std::string& name, std::vector<Copy>* copies) {
  void* handle = dlopen(name.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (handle == nullptr) return;
  void* table = dlsym(handle, kTableName);
  Dl_info info{};
  if (table != nullptr && dladdr(table, &info) != 0) {
    copies->push_back({info.dli_fbase, info.dli_fname, reinterpret_cast<const char* (*)()>(table)});
  }
  dlclose(handle);
}

std::vector<Copy> LoadedCopies() {
  std::vector<Copy> copies;
  for (const std::string& name : LoadedNames()) AddCopy(name, &copies);
  return copies;
}

#else

Copy ThisCopy() { return {nullptr, "", nullptr}; }
void StayLoaded() {}
std::vector<Copy> LoadedCopies() { return {}; }

#endif

/// The value of a table's field `"name": "value"`, as the library itself writes it.
std::string Field(const std::string& table, const std::string& name) {
  const std::string key = "\"" + name + "\": \"";
  const size_t begin = table.find(key);
  if (begin == std::string::npos) return "";
  const size_t end = table.find('"', begin + key.size());
  return table.substr(begin + key.size(), end - begin - key.size());
}

}  // namespace

bool IsRegistered() { return registered.load(std::memory_order_relaxed); }
void MarkRegistered() {
  if (!registered.exchange(true, std::memory_order_relaxed)) StayLoaded();
}

void RefuseOtherVersions() {
  const Copy self = ThisCopy();
  for (const Copy& copy : LoadedCopies()) {
    if (copy.place == self.place) continue;
    const std::string table = copy.table();
    const std::string version = Field(table, "version");
    if (version == ONNXNORM_VERSION || table.find("\"registered\": true") == std::string::npos) {
      continue;
    }
    throw Error(Text("onnxnorm: two versions in one process: ", version, " (", copy.path,
                     ") is in use, and ", ONNXNORM_VERSION, " (", self.path,
                     ") was to be registered; use one of them for all sessions of the process "
                     "(ONNXNORM_LIBRARY names it for Python), or start another process"),
                abi::ErrorCode::kFail);
  }
}

}  // namespace onnxnorm
