// bf16 and f16 to and from f32 in plain C++: round to nearest even, denormals kept, NaN stays NaN, f16
// overflows to inf.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa/mma_kind.h"

namespace pagemill {

PM_INLINE float bf16_to_f32(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

PM_INLINE uint16_t f32_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

PM_INLINE float f16_to_f32(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16, rest = x & 0x7fffu;
  uint32_t bits;
  float f;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000u | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000u : 0);
    std::memcpy(&f, &bits, 4);
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + (112u << 23));
    std::memcpy(&f, &bits, 4);
  } else {
    f = static_cast<float>(rest) * 0x1p-24f;
    if (sign) f = -f;
  }
  return f;
}

PM_INLINE uint16_t f32_to_f16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00 | (rest >> 13 & 0x3ff);
  } else if (rest >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (rest <
             0x38800000u) {  // below 2^-14: adding 0.5 leaves the f16 denormal, rounded, in the low bits
    float g;
    std::memcpy(&g, &rest, 4);
    g += 0.5f;
    uint32_t low;
    std::memcpy(&low, &g, 4);
    half = low - 0x3f000000u;
  } else {
    half = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace pagemill
