// AMX tiles in plain C++: 16 rows of 64 bytes, and tdpbf16ps with the hardware's rounding (Intel SDM,
// TDPBF16PS: even and odd products summed apart by FMA in f32, then added, denormals in and out flushed,
// nearest even).
#pragma once

#include <cmath>
#include <cstring>

#include "isa/float16.h"
#include "isa/mma_kind.h"

namespace pagemill::amx_emulated {

struct Tile {
  int rows, row_bytes;  // as a tile configuration sets them: at most 16 and 64
  alignas(64) std::byte data[16][64];

  void zero() { std::memset(data, 0, sizeof data); }
  void load(const std::byte* p, int64_t stride) {
    for (int r = 0; r < rows; ++r) std::memcpy(data[r], p + r * stride, static_cast<size_t>(row_bytes));
  }
  void store(std::byte* p, int64_t stride) const {
    for (int r = 0; r < rows; ++r) std::memcpy(p + r * stride, data[r], static_cast<size_t>(row_bytes));
  }
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

}  // namespace pagemill::amx_emulated
