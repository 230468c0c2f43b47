// The two kinds of fp8 in plain C++: e4m3 (of OCP: no infinity, NaN 0x7f, up to 448) and e5m2 (the upper half
// of an f16, up to 57344). Every number of theirs, denormals too, is a normal number of bf16 or 0.
#pragma once

#include <pagemill/pagemill.h>

#include <cstdint>

#include "isa/mma_kind.h"

namespace pagemill {

template <pm_dtype>
struct Float8;
template <>
struct Float8<PM_F8E4M3> {
  static constexpr int kFraction = 3, kBias = 7;
  static constexpr uint8_t kLargest = 0x7e;
  static constexpr float kMax = 448;
};
template <>
struct Float8<PM_F8E5M2> {
  static constexpr int kFraction = 2, kBias = 15;
  static constexpr uint8_t kLargest = 0x7b;
  static constexpr float kMax = 57344;
};
constexpr uint8_t kNan8 = 0x7f;  // of both

template <pm_dtype kDtype>
PM_INLINE constexpr uint16_t f8_to_bf16(uint8_t x) {
  using T = Float8<kDtype>;
  const unsigned sign = (x & 0x80u) << 8, magnitude = x & 0x7fu, shifted = magnitude << (7 - T::kFraction);
  if (magnitude > T::kLargest) return static_cast<uint16_t>(sign | 0x7f00u | (shifted & 0xffu));
  constexpr unsigned kExponent = 127 - T::kBias;
  if (magnitude >> T::kFraction) return static_cast<uint16_t>(sign | (shifted + (kExponent << 7)));
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  const unsigned top = 31 - static_cast<unsigned>(__builtin_clz(magnitude));
  return static_cast<uint16_t>(sign | ((kExponent + 1 - T::kFraction + top) << 7) |
                               ((magnitude << (7 - top)) & 0x7fu));
}

// Rounds to nearest, ties to even; what lies beyond the largest number, infinities too, becomes that number.
template <pm_dtype kDtype>
PM_INLINE constexpr uint8_t f32_to_f8(float f) {
  using T = Float8<kDtype>;
  const auto bits = __builtin_bit_cast(uint32_t, f);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | kNan8);
  const auto size = __builtin_bit_cast(float, magnitude);
  if (size >= T::kMax) return static_cast<uint8_t>(sign | T::kLargest);
  constexpr uint32_t kExponent = 127 - T::kBias;
  constexpr int kDropped = 23 - T::kFraction;
  if (magnitude < (kExponent + 1) << 23) {  // a denormal: an f32 of this size ends at its last bit
    constexpr uint32_t kUnits = (kExponent + 1 + kDropped) << 23;
    return static_cast<uint8_t>(
        sign | (__builtin_bit_cast(uint32_t, size + __builtin_bit_cast(float, kUnits)) - kUnits));
  }
  const uint32_t rounded = magnitude + (1u << (kDropped - 1)) - 1 + (magnitude >> kDropped & 1);
  return static_cast<uint8_t>(sign | ((rounded >> kDropped) - (kExponent << T::kFraction)));
}

// How vectors of bytes become the high and the low bytes of bf16: for a normal number of magnitude x
//     high = (x >> kHighShift) + kHigh,  low = x << kLowShift;
// for a denormal less and other than that by what a table of 16 bytes holds at the low four bits of
// x + kToIndex, a sum below 128 for denormals alone.
template <pm_dtype kDtype>
struct WidenBytes {
  using T = Float8<kDtype>;
  static constexpr int kLowShift = 7 - T::kFraction, kHighShift = 8 - kLowShift;
  static constexpr int kDenormals = 1 << T::kFraction, kToIndex = 128 - kDenormals;
  static constexpr int kHigh = (127 - T::kBias) >> 1;

  struct Table {
    alignas(16) uint8_t of[16] = {};
  };
  static constexpr Table less_high() {
    Table table;
    for (int x = 0; x < kDenormals; ++x) {
      table.of[16 - kDenormals + x] =
          static_cast<uint8_t>(kHigh - (f8_to_bf16<kDtype>(static_cast<uint8_t>(x)) >> 8));
    }
    return table;
  }
  static constexpr Table other_low() {
    Table table;
    for (int x = 0; x < kDenormals; ++x) {
      table.of[16 - kDenormals + x] =
          static_cast<uint8_t>((x << kLowShift) ^ f8_to_bf16<kDtype>(static_cast<uint8_t>(x)));
    }
    return table;
  }
};
static_assert((127 - 7) % 2 == 0 && (127 - 15) % 2 == 0);  // else kHigh would need a bit of `low`

}  // namespace pagemill
