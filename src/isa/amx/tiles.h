// The tile registers of AMX. Instructions are written out because GCC's intrinsics take only literal numbers
// of registers, and its loads do not say that they read memory.
#pragma once

#include <cstdint>

#include "isa/mma_kind.h"
#include "isa/tile_mma.h"

namespace pagemill {

struct AmxTiles {
  static PM_INLINE void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static PM_INLINE void save(TileConfig& config) { __asm__ volatile("sttilecfg %0" : "=m"(config)); }
  static PM_INLINE void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static PM_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  static PM_INLINE void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(p), "r"(stride) : "memory");
  }
  // Of what the first-level cache need not keep.
  template <int kTile>
  static PM_INLINE void load_once(const void* p, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(p), "r"(stride) : "memory");
  }
  template <int kTile>
  static PM_INLINE void store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(p), "r"(stride) : "memory");
  }
  template <int kSums, int kA, int kB>
  static PM_INLINE void dpbf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};

}  // namespace pagemill
