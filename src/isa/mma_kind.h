// What every kernel translation unit shares: kinds of product and the loop helpers. All of it is inlined or
// internal to the unit, so that code built for one ISA can never be linked into another's path.
#pragma once

#include <algorithm>
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
//
// Where that prefetcher follows many streams at once (CpuFeatures::many_streams), chunks are no longer than
// the page of memory that it does not leave, and a line of each of eight is fetched in turn: a core of an
// Emerald Rapids then decodes at 0.72 of what it reads in sequence, and at 0.63 one chunk after the other.
struct Ahead {
  struct Chunk {
    const std::byte* at;
    int32_t lines;    // of 64 bytes
    int32_t streams;  // this chunk and those after it that are fetched together
  };
  static constexpr int kMostChunks = 512, kMostStreams = 8, kStreamLines = 64;
  Chunk chunks[kMostChunks + 1];  // one more: what lies after the last is read, not used
  int32_t num_chunks = 0;
  bool many_streams = false;

  // Where fetching is: the first chunk of those that are fetched together, how many these are; of which a
  // line is next, and which.
  struct Place {
    int32_t chunk = 0, streams = 1, stream = 0, line = 0;
  };
  Place place;

  // After the last chunk. Chunks of one length are fetched together.
  PM_INLINE void begin() {
    for (int32_t first = 0; many_streams && first < num_chunks; first += chunks[first].streams) {
      Chunk& chunk = chunks[first];
      const int32_t most = std::min(kMostStreams, num_chunks - first);
      while (chunk.streams < most && chunks[first + chunk.streams].lines == chunk.lines) ++chunk.streams;
    }
    chunks[num_chunks] = {nullptr, 0, 1};
    place = at(0);
  }
  PM_INLINE bool done() const { return place.chunk >= num_chunks; }

  template <int kLines>
  PM_INLINE void step() {
    step<kLines>(place);
  }
  // With a place of the caller's, for loops that keep it in registers: stores of it between loads that happen
  // to lie a multiple of 4 KiB away hold these up until all before has retired, and decode went from 0.81 of
  // bandwidth to 0.58.
  template <int kLines>
  PM_INLINE void step(Place& p) const {
    if (p.chunk >= num_chunks) return;
    const Chunk* c = chunks + p.chunk;
    if (p.streams == 1) {
      step_alone<kLines>(p);
    } else if (p.stream + kLines <= p.streams) {
      PM_UNROLL for (int i = 0; i < kLines; ++i) {
        __builtin_prefetch(c[p.stream + i].at + p.line * 64, 0, 1);
      }
      p.stream += kLines;
      if (p.stream == p.streams) next_line(p);
    } else {
      for (int i = 0; i < kLines && p.chunk < num_chunks; ++i) {
        __builtin_prefetch(chunks[p.chunk + p.stream].at + p.line * 64, 0, 1);
        if (++p.stream == p.streams) next_line(p);
      }
    }
  }
  // Where p.streams is 1 and not all is done.
  template <int kLines>
  PM_INLINE void step_alone(Place& p) const {
    const Chunk* c = chunks + p.chunk;
    PM_UNROLL for (int i = 0; i < kLines; ++i) __builtin_prefetch(c->at + (p.line + i) * 64, 0, 1);
    p.line += kLines;
    if (p.line >= c->lines) p = at(p.chunk + 1);
  }

 private:
  PM_INLINE void next_line(Place& p) const {
    p.stream = 0;
    if (++p.line == chunks[p.chunk].lines) p = at(p.chunk + p.streams);
  }
  PM_INLINE Place at(int32_t chunk) const { return {chunk, chunks[chunk].streams, 0, 0}; }
};

// Ahead::step, with many streams at once out of line: where they are one at a time, decode over rows is 2%
// faster for the registers.
template <int kLines>
static PM_NOINLINE void fetch_streams(Ahead& ahead) {
  ahead.step<kLines>();
}
template <int kLines>
PM_INLINE void fetch(Ahead& ahead) {
  if (ahead.done()) return;
  if (ahead.place.streams == 1) {
    ahead.step_alone<kLines>(ahead.place);
  } else {
    fetch_streams<kLines>(ahead);
  }
}

// One time in `every`, counted in `wait`, which begins as 1.
template <int kLines>
PM_INLINE void fetch_in_turn(Ahead& ahead, int every, int& wait) {
  if (--wait > 0) return;
  wait = every;
  fetch<kLines>(ahead);
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
