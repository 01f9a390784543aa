#include "core/cpu_target.h"

#include <cstdlib>
#include <string>

#include "core/error.h"

#if defined(ONNXNORM_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace onnxnorm {
namespace {

#if defined(ONNXNORM_X86) && defined(_MSC_VER)

// MSVC has no query for CPU features: CPUID says what the CPU has, XCR0 what the system saves.
struct X86Features {
  bool avx2 = false, avx512 = false;
  X86Features() {
    int regs[4];
    __cpuid(regs, 0);
    if (regs[0] < 7) return;
    __cpuid(regs, 1);
    const int leaf1 = regs[2];
    const bool fma = leaf1 >> 12 & 1, osxsave = leaf1 >> 27 & 1, f16c = leaf1 >> 29 & 1;
    if (!osxsave) return;
    const unsigned long long saved = _xgetbv(0);
    __cpuidex(regs, 7, 0);
    const int ebx = regs[1];
    avx2 = fma && f16c && (ebx >> 5 & 1) && (saved & 6) == 6;
    avx512 = avx2 && (ebx >> 16 & 1) && (ebx >> 17 & 1) && (ebx >> 30 & 1) && (ebx >> 31 & 1) &&
             (saved & 0xe6) == 0xe6;
  }
};

bool HasAvx2() { return X86Features().avx2; }
bool HasAvx512() { return X86Features().avx512; }

#elif defined(ONNXNORM_X86)

bool HasAvx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

bool Always() { return true; }

struct Candidate {
  const char* name;
  const char* needs;
  bool (*available)();
  const simd::Level& (*level)();
};

// The best first. Levels of other architectures are named, so that asking for one says what is
// wrong.
constexpr Candidate kCandidates[] = {
#if defined(ONNXNORM_X86)
    {"avx512", "AVX-512 F, BW, DQ and VL", HasAvx512, simd::Avx512Level},
    {"avx2", "AVX2, FMA and F16C", HasAvx2, simd::Avx2Level},
#else
    {"avx512", "an x86-64 CPU", nullptr, nullptr},
    {"avx2", "an x86-64 CPU", nullptr, nullptr},
#endif
#if defined(ONNXNORM_NEON)
    {"neon", "NEON", Always, simd::NeonLevel},
#else
    {"neon", "an aarch64 CPU", nullptr, nullptr},
#endif
    {"scalar", "nothing", Always, simd::ScalarLevel},
};

bool IsAvailable(const Candidate& candidate) {
  return candidate.available != nullptr && candidate.available();
}

std::string AvailableNames() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (IsAvailable(candidate)) names += (names.empty() ? "" : ", ") + std::string(candidate.name);
  }
  return names;
}

}  // namespace

const simd::Level& SelectLevel() {
  const char* forced = std::getenv("ONNXNORM_CPU_TARGET");
  const std::string name = forced == nullptr ? "" : forced;
  for (const Candidate& candidate : kCandidates) {
    if (name.empty() ? !IsAvailable(candidate) : name != candidate.name) continue;
    if (IsAvailable(candidate)) return candidate.level();
    throw Error(Text("onnxnorm: ONNXNORM_CPU_TARGET is ", name, ", which needs ", candidate.needs,
                     "; this CPU has ", AvailableNames()));
  }
  throw Error(Text("onnxnorm: ONNXNORM_CPU_TARGET is '", name,
                   "'; it must be one of scalar, avx2, avx512, neon (this CPU has ",
                   AvailableNames(), ")"));
}

}  // namespace onnxnorm
