// AMX tile registers in plain C++, with tdpbf16ps and the hardware's rounding (Intel SDM, TDPBF16PS: even and
// odd products summed apart by FMA in f32, then added, denormals in and out flushed, nearest even). What
// faults on the hardware traps here too: registers that no configuration names, shapes that do not agree.
#pragma once

#include <cmath>
#include <cstring>

#include "isa/float16.h"
#include "isa/mma_kind.h"
#include "isa/tile_mma.h"

namespace pagemill::amx_emulated {

struct Tile {
  int rows, row_bytes;  // 0: not configured
  alignas(64) std::byte data[16][64];
};

inline float flush(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

// c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1].
inline void tdpbf16ps(Tile& c, const Tile& a, const Tile& b) {
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float sums[2] = {0, 0};
      for (int k = 0; k < a.row_bytes / 4; ++k) {
        uint16_t x[2], y[2];
        std::memcpy(x, a.data[m] + 4 * k, 4);
        std::memcpy(y, b.data[k] + 4 * n, 4);
        for (int i = 0; i < 2; ++i) {
          sums[i] = flush(std::fma(flush(bf16_to_f32(x[i])), flush(bf16_to_f32(y[i])), sums[i]));
        }
      }
      float sum;
      std::memcpy(&sum, c.data[m] + 4 * n, 4);
      sum = flush(flush(sum) + flush(sums[0] + sums[1]));
      std::memcpy(c.data[m] + 4 * n, &sum, 4);
    }
  }
}

// Eight registers for each thread, as the hardware has them.
struct Tiles {
  static void configure(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) require(byte == 0);
    for (int t = 0; t < 16; ++t) {
      require((config.rows[t] == 0) == (config.row_bytes[t] == 0));
      require(t < kCount ? config.rows[t] <= 16 && config.row_bytes[t] <= 64 : config.rows[t] == 0);
    }
    for (int t = 0; t < kCount; ++t) registers[t] = {config.rows[t], config.row_bytes[t], {}};
    current = config;
  }
  static void save(TileConfig& config) { config = current; }
  static void release() {
    for (Tile& tile : registers) tile = {};
    current = kNone;
  }

  template <int kTile>
  static void zero() {
    zero(kTile);
  }
  template <int kTile>
  static void load(const void* p, int64_t stride) {
    load(kTile, p, stride);
  }
  template <int kTile>
  static void load_once(const void* p, int64_t stride) {
    load(kTile, p, stride);
  }
  template <int kTile>
  static void store(void* p, int64_t stride) {
    store(kTile, p, stride);
  }
  template <int kSums, int kA, int kB>
  static void dpbf16() {
    dpbf16(kSums, kA, kB);
  }

  // Not inlined: their loops at each of a kernel's tiles took a quarter of the time that the unit takes to
  // compile.
  PM_NOINLINE static void zero(int tile) { std::memset(configured(tile).data, 0, sizeof(Tile::data)); }
  PM_NOINLINE static void load(int to, const void* p, int64_t stride) {
    Tile& tile = configured(to);
    for (int r = 0; r < tile.rows; ++r) {
      std::memcpy(tile.data[r], static_cast<const std::byte*>(p) + r * stride,
                  static_cast<size_t>(tile.row_bytes));
    }
  }
  PM_NOINLINE static void store(int from, void* p, int64_t stride) {
    const Tile& tile = configured(from);
    for (int r = 0; r < tile.rows; ++r) {
      std::memcpy(static_cast<std::byte*>(p) + r * stride, tile.data[r], static_cast<size_t>(tile.row_bytes));
    }
  }
  PM_NOINLINE static void dpbf16(int sums_tile, int a_tile, int b_tile) {
    Tile& sums = configured(sums_tile);
    const Tile &a = configured(a_tile), &b = configured(b_tile);
    require(sums_tile != a_tile && sums_tile != b_tile && a_tile != b_tile);
    require(sums.row_bytes % 4 == 0 && a.row_bytes % 4 == 0);
    require(sums.rows == a.rows && a.row_bytes / 4 == b.rows && sums.row_bytes == b.row_bytes);
    tdpbf16ps(sums, a, b);
  }

 private:
  static constexpr int kCount = 8;
  static constexpr TileConfig kNone = {.palette = 0};
  static inline thread_local Tile registers[kCount];
  static inline thread_local TileConfig current = kNone;

  static void require(bool holds) {
    if (!holds) __builtin_trap();
  }
  static Tile& configured(int tile) {
    require(registers[tile].rows > 0);
    return registers[tile];
  }
};

}  // namespace pagemill::amx_emulated
