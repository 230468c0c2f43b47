// What every kernel translation unit shares: kinds of product and the loop helpers. All of it is inlined or
// internal to the unit, so that code built for one ISA can never be linked into another's path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define PM_INLINE inline __attribute__((always_inline))
#define PM_NOINLINE __attribute__((noinline))
#define PM_INLINE_LAMBDA __attribute__((always_inline))
// GCC 12 at -O2 keeps arrays of vectors in memory unless the loops over them are unrolled: 4.8 times slower.
#if defined(__clang__)
#define PM_UNROLL _Pragma("unroll")
#else
#define PM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pagemill {

// dtype of the rows (q, weights) x dtype of keys and values as computed with.
enum class Mma {
  kBf16,     // bf16 x bf16, f32 sums
  kF32Bf16,  // f32 x bf16 widened
  kF32,      // f32 x f32
};

// To the second level and not the first: with the next 64 KiB block in flight the first level only loses
// (on Zen 4, read bandwidth reached in decode: T2 0.57-0.70, T0 0.53, none 0.46, NTA 0.50).
PM_INLINE void prefetch_line(const std::byte* p, int64_t offset) {
  __builtin_prefetch(p + offset, 0, 1);
}

// Cuts n into blocks of at most kMost, as even as can be, and calls f with each one's size as a constant.
template <int kMost, class F>
PM_INLINE void for_blocks(int n, F f) {
  const int blocks = (n + kMost - 1) / kMost;
  for (int i = 0; i < blocks; ++i) {
    const int size = (n * (i + 1)) / blocks - (n * i) / blocks;
    const auto call = [&]<int kSize>(std::integral_constant<int, kSize> c) PM_INLINE_LAMBDA {
      if constexpr (kSize <= kMost) {
        if (size == kSize) f(c);
      }
    };
    call(std::integral_constant<int, 1>{});
    call(std::integral_constant<int, 2>{});
    call(std::integral_constant<int, 3>{});
    call(std::integral_constant<int, 4>{});
    call(std::integral_constant<int, 5>{});
    call(std::integral_constant<int, 6>{});
  }
}

}  // namespace pagemill
