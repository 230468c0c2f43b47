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
  kF32F16,   // f32 x f16 widened
  kF32,      // f32 x f32
};

// What the matrix verbs fetch for the next block while they multiply this one: chunks in the order of memory,
// so that the hardware's stream prefetcher helps, a few lines for each step of a register block. All of it
// goes to the second-level cache: with 64 KiB and more in flight the first level would only lose.
struct Ahead {
  struct Chunk {
    const std::byte* at;
    int32_t lines;  // of 64 bytes
  };
  static constexpr int kMostChunks = 256;
  Chunk chunks[kMostChunks];
  int32_t num_chunks = 0;
  int32_t chunk = 0, line = 0;  // the next to fetch

  template <int kLines>
  PM_INLINE void step() {
    if (chunk >= num_chunks) return;
    const Chunk c = chunks[chunk];
    PM_UNROLL for (int i = 0; i < kLines; ++i) __builtin_prefetch(c.at + (line + i) * 64, 0, 1);
    line += kLines;
    if (line >= c.lines) {
      line = 0;
      ++chunk;
    }
  }
};

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
