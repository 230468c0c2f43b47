// Read kernels: loads of each width, in one or four streams, plain or with software prefetch.
#include <cstring>

#include "peaks.h"

namespace pagemill {
namespace {

typedef uint64_t V16 __attribute__((vector_size(16)));
#ifdef __x86_64__
typedef uint64_t V32 __attribute__((vector_size(32)));
typedef uint64_t V64 __attribute__((vector_size(64)));
#endif

constexpr int kLine = 64;  // bytes
enum Hint { kNta, kT2, kT1, kT0 };

// XOR of `bytes` bytes, read as kStreams contiguous parts side by side. ahead: bytes from a load to the
// prefetch that goes with it, 0 = none. A macro, because a function that is inlined into one with another
// target has had its vectors split already.
#define PM_READ(name, V, target)                                               \
  template <int kStreams, int kAhead, Hint kHint>                              \
  target uint64_t name(const std::byte* data, size_t bytes) {                  \
    constexpr int kLoads = kLine / sizeof(V);                                  \
    const size_t part = bytes / kStreams;                                      \
    V sums[kStreams][kLoads] = {};                                             \
    for (size_t i = 0; i < part; i += kLine) {                                 \
      _Pragma("GCC unroll 4") for (int s = 0; s < kStreams; ++s) {             \
        const std::byte* line = data + s * part + i;                           \
        if constexpr (kAhead > 0) __builtin_prefetch(line + kAhead, 0, kHint); \
        _Pragma("GCC unroll 4") for (int j = 0; j < kLoads; ++j) {             \
          sums[s][j] ^= *reinterpret_cast<const V*>(line + j * sizeof(V));     \
        }                                                                      \
      }                                                                        \
    }                                                                          \
    uint64_t words[sizeof sums / 8], sum = 0;                                  \
    std::memcpy(words, sums, sizeof sums);                                     \
    for (uint64_t word : words) sum ^= word;                                   \
    return sum;                                                                \
  }
PM_READ(read16, V16, )
#ifdef __x86_64__
PM_READ(read32, V32, __attribute__((target("avx2"))))
PM_READ(read64, V64, __attribute__((target("avx512f"))))
#endif

bool always() {
  return true;
}
#ifdef __x86_64__
bool has_avx2() {
  return __builtin_cpu_supports("avx2");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f");
}
#endif

#define PM_READ_KERNELS(width, supported)                                                      \
  {#width " B loads", supported, read##width<1, 0, kT0>},                                      \
      {#width " B loads, 4 streams", supported, read##width<4, 0, kT0>},                       \
      {#width " B loads, prefetcht0 1 KiB ahead", supported, read##width<1, 1024, kT0>},       \
      {#width " B loads, prefetcht0 4 KiB ahead", supported, read##width<1, 4096, kT0>},       \
      {#width " B loads, prefetchnta 2 KiB ahead", supported, read##width<1, 2048, kNta>},     \
      {#width " B loads, prefetcht2 2 KiB ahead", supported, read##width<1, 2048, kT2>},       \
      {#width " B loads, prefetcht2 8 KiB ahead", supported, read##width<1, 8192, kT2>},       \
      {#width " B loads, prefetcht2 32 KiB ahead", supported, read##width<1, 32768, kT2>}, {   \
    #width " B loads, 4 streams, prefetcht2 2 KiB ahead", supported, read##width<4, 2048, kT2> \
  }

constexpr ReadKernel kReadKernels[] = {
    PM_READ_KERNELS(16, always),
#ifdef __x86_64__
    PM_READ_KERNELS(32, has_avx2),
    PM_READ_KERNELS(64, has_avx512),
#endif
};

}  // namespace

std::span<const ReadKernel> read_kernels() {
  return kReadKernels;
}

}  // namespace pagemill
