#include "dispatch/cpu.h"

#if defined(PAGEMILL_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#endif

namespace pagemill {
namespace {

#if defined(PAGEMILL_X86)
uint64_t enabled_register_state() {  // XCR0: what the OS saves
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Linux lets a process use tiles only if it asked before. The answer holds for all of its threads.
bool permit_tiles(uint64_t saved) {
  constexpr uint64_t kTileState = 3u << 17;                    // XTILECFG, XTILEDATA
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (saved & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures f{};
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return f;
  f.many_streams = b == signature_INTEL_ebx;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return f;
  const bool fma_f16c = (c & bit_FMA) && (c & bit_F16C);
  const uint64_t saved = enabled_register_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2_fma_f16c = fma_f16c && (b & bit_AVX2) && (saved & 0x6) == 0x6;
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  f.avx512 = f.avx2_fma_f16c && (b & kAvx512) == kAvx512 && (saved & 0xe6) == 0xe6;
  f.avx512_vbmi = f.avx512 && (c & 1u << 1);
  constexpr uint32_t kAmx = 1u << 22 | 1u << 24;  // BF16, TILE
  const bool amx = (d & kAmx) == kAmx;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512_bf16 = f.avx512 && (a & 1u << 5);
  f.amx_bf16 = amx && f.avx512_bf16;
  f.amx_permitted = f.amx_bf16 && permit_tiles(saved);
  return f;
}
#else
CpuFeatures detect() {
  return {};
}
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static CpuFeatures features = detect();
  return features;
}

std::string cpu_model() {
#if defined(PAGEMILL_X86)
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return "x86";
  char vendor[13] = {};
  std::memcpy(vendor, &b, 4);
  std::memcpy(vendor + 4, &d, 4);
  std::memcpy(vendor + 8, &c, 4);
  __get_cpuid(1, &a, &b, &c, &d);
  const uint32_t base = a >> 8 & 0xf, family = base == 0xf ? base + (a >> 20 & 0xff) : base;
  const uint32_t model = (a >> 4 & 0xf) | (base == 6 || base == 0xf ? a >> 12 & 0xf0 : 0);
  return std::string(vendor) + "-" + std::to_string(family) + "-" + std::to_string(model);
#else
  return "aarch64";
#endif
}

}  // namespace pagemill
