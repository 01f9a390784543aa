// Element types and their conversions. Every function here has internal linkage, because files
// compiled for different instruction sets include this header and must not share code.
#pragma once

#include <cstdint>
#include <cstring>

namespace onnxnorm {

/// IEEE binary16, as bits.
struct half_t {
  uint16_t bits;
};

/// The upper half of a binary32, as bits.
struct bfloat16_t {
  uint16_t bits;
};

/// The type that statistics and results are computed in.
template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

static inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float ToFloat(float value) { return value; }

static inline float ToFloat(bfloat16_t value) {
  return FloatOf(static_cast<uint32_t>(value.bits) << 16);
}

static inline float ToFloat(half_t value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return FloatOf(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // inf, NaN
  if (rest >= 0x0400u) return FloatOf(sign | ((rest << 13) + ((127u - 15u) << 23)));
  // A subnormal is rest * 2^-24, exact in float.
  return FloatOf(sign | BitsOf(static_cast<float>(rest) * 0x1p-24f));
}

static inline double ToDouble(float value) { return value; }
static inline double ToDouble(double value) { return value; }
static inline double ToDouble(half_t value) { return ToFloat(value); }
static inline double ToDouble(bfloat16_t value) { return ToFloat(value); }

static inline void FromFloat(float value, float* out) { *out = value; }

// Rounds to nearest even; NaN stays NaN.
static inline void FromFloat(float value, bfloat16_t* out) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Rounds to nearest even; NaN stays NaN.
static inline void FromFloat(float value, half_t* out) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u | (rest >> 13 & 0x3ffu);
  } else if (rest >= 0x477ff000u) {  // 65520, the first value that rounds to infinity
    half = 0x7c00u;
  } else if (rest >= 0x38800000u) {  // 2^-14, the smallest normal
    half = (rest - ((127u - 15u) << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  } else {
    // Adding 0.5 makes the unit in the last place 2^-24, a half's smallest step: the addition
    // rounds.
    half = BitsOf(FloatOf(rest) + 0.5f) - BitsOf(0.5f);
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

static inline void FromDouble(double value, double* out) { *out = value; }
template <typename T>
static inline void FromDouble(double value, T* out) {
  FromFloat(static_cast<float>(value), out);
}

}  // namespace onnxnorm
