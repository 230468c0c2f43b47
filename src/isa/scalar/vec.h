// Plain C++, one lane: the reference ISA, and the only one of machines without kernels of their own.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "isa/float16.h"
#include "isa/float8.h"
#include "isa/mma_kind.h"

namespace pagemill {

template <class Name>  // each unit that uses it names its own type, so that their code stays apart
struct ScalarVec {
  using F = float;
  using B = float;  // no bf16 products
  static constexpr int kLanes = 1;
  static constexpr int kRows = 2, kGroups = 1, kVectors = 4;
  static constexpr int kTileRows = 16;

  static PM_INLINE F zero() { return 0; }
  static PM_INLINE F set1(float x) { return x; }
  static PM_INLINE F load(const float* p) { return *p; }
  static PM_INLINE F load(const float* p, int) { return *p; }
  static PM_INLINE void store(float* p, F x) { *p = x; }
  static PM_INLINE void store(float* p, F x, int) { *p = x; }
  static PM_INLINE F add(F a, F b) { return a + b; }
  static PM_INLINE F sub(F a, F b) { return a - b; }
  static PM_INLINE F mul(F a, F b) { return a * b; }
  static PM_INLINE F div(F a, F b) { return a / b; }
  static PM_INLINE F fma(F a, F b, F c) {
#ifdef __FP_FAST_FMAF
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
  }
  static PM_INLINE F max(F a, F b) { return a > b ? a : b; }  // b where either is NaN
  static PM_INLINE F abs(F x) { return std::fabs(x); }
  static PM_INLINE F iota() { return 0; }
  static PM_INLINE F where_less(F a, F b, F x, F y) { return a < b ? x : y; }
  static PM_INLINE F keep(F x, int begin, int end) {
    return begin <= 0 && end > 0 ? x : -std::numeric_limits<float>::infinity();
  }
  static PM_INLINE float reduce_max(F x) { return x; }
  static PM_INLINE float reduce_add(F x) { return x; }

  static PM_INLINE bool none_above(F a, float limit) { return a <= limit; }  // false for NaN

  // 2^x; 0 below -126, NaN for NaN. `p` is the polynomial of the fraction, x - floor(x).
  template <class Polynomial>
  static PM_INLINE F exp2(F x, Polynomial p) {
    if (x < -126.0f) return 0.0f;
    if (!(x < 128.0f)) return x + std::numeric_limits<float>::infinity();
    const auto toward_zero = static_cast<int32_t>(x);
    const int32_t whole = toward_zero - (x < static_cast<float>(toward_zero));
    const float y = p(x - static_cast<float>(whole));
    int32_t bits;
    std::memcpy(&bits, &y, 4);
    bits += whole * (1 << 23);
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  // Element kHalf (0 or 1) of a pair.
  template <int kHalf>
  static PM_INLINE F widen_bf16(const std::byte* p, int) {
    uint16_t x;
    std::memcpy(&x, p + 2 * kHalf, 2);
    return bf16_to_f32(x);
  }
  template <int kHalf>
  static PM_INLINE F widen_f16(const std::byte* p, int) {
    uint16_t x;
    std::memcpy(&x, p + 2 * kHalf, 2);
    return f16_to_f32(x);
  }
  static PM_INLINE F load_bf16(const uint16_t* p, int) { return bf16_to_f32(*p); }
  static PM_INLINE F load_f16(const uint16_t* p, int) { return f16_to_f32(*p); }
  static PM_INLINE void store_bf16(uint16_t* p, F x, int) { *p = f32_to_bf16(x); }
  static PM_INLINE void store_f16(uint16_t* p, F x, int) { *p = f32_to_f16(x); }
  template <pm_dtype kDtype>
  static PM_INLINE void store_f8(uint8_t* p, F x, int) {
    *p = f32_to_f8<kDtype>(x);
  }
  static PM_INLINE void store_weights(uint16_t* p, F x) { *p = f32_to_bf16(x); }
  static PM_INLINE void store_weights(uint16_t* p, F a, uint16_t* q, F b) {
    *p = f32_to_bf16(a), *q = f32_to_bf16(b);
  }

  static constexpr bool kLooksUp = false;  // whether fp8 can be widened by tables in registers
  // Words of four fp8: elements 0 and 1 as a pair of bf16 to `low`, 2 and 3 to `high`.
  template <pm_dtype kDtype>
  static PM_INLINE void widen_f8(const std::byte* words, std::byte* low, std::byte* high, int) {
    uint8_t x[4];
    std::memcpy(x, words, 4);
    const uint16_t y[4] = {f8_to_bf16<kDtype>(x[0]), f8_to_bf16<kDtype>(x[1]), f8_to_bf16<kDtype>(x[2]),
                           f8_to_bf16<kDtype>(x[3])};
    std::memcpy(low, y, 4);
    std::memcpy(high, y + 2, 4);
  }

  // dst[d] = bytes d of the four rows, the first lowest, for d < n.
  static PM_INLINE void interleave_bytes(const std::byte* const* rows, int n, uint32_t* dst) {
    for (int d = 0; d < n; ++d) {
      const std::byte word[4] = {rows[0][d], rows[1][d], rows[2][d], rows[3][d]};
      std::memcpy(dst + d, word, 4);
    }
  }
  static PM_INLINE void interleave(const std::byte* low, const std::byte* high, int n, uint32_t* dst) {
    for (int d = 0; d < n; ++d) {
      uint16_t a, b;
      std::memcpy(&a, low + 2 * d, 2);
      std::memcpy(&b, high + 2 * d, 2);
      dst[d] = uint32_t{a} | uint32_t{b} << 16;
    }
  }
  static PM_INLINE void transpose(const std::byte* const* rows, int begin, int end, uint32_t* dst) {
    for (int i = begin; i < end; ++i) {
      for (int t = 0; t < 16; ++t) std::memcpy(dst + i * 16 + t, rows[t] + 4 * i, 4);
    }
  }
};

}  // namespace pagemill
