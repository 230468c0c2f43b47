// The two matrix verbs on tiles: what a real AMX kernel does, on the emulated ones.
#pragma once

#include "attention/step.h"
#include "isa/amx_emulated/tiles.h"

namespace pagemill::amx_emulated {

struct TileMma {
  static constexpr int kTerms = 16;  // r-pairs of one tile product

  // As VectorMma::scores: a group of keys is a B tile of 16 pairs of dims by 16 keys as it lies.
  template <int kD>
  static void scores(const std::byte* q, int64_t ldq, int rows, const std::byte* const* k, int groups,
                     int head_dim, float* s, Ahead* /*prefetch*/) {
    for (int row = 0; row < rows; row += 16) {
      const int m = rows - row < 16 ? rows - row : 16;
      for (int g = 0; g < groups; ++g) {
        Tile c{m, 64, {}};
        for (int pair = 0; pair < head_dim / 2; pair += kTerms) {
          const int terms = head_dim / 2 - pair < kTerms ? head_dim / 2 - pair : kTerms;
          Tile a{m, terms * 4, {}}, b{terms, 64, {}};
          a.load(q + row * ldq + pair * 4, ldq);
          b.load(k[g] + pair * 64, 64);
          tdpbf16ps(c, a, b);
        }
        c.store(reinterpret_cast<std::byte*>(s + row * kBlockKeys + g * kGroupKeys), kBlockKeys * 4);
      }
    }
  }

  // As VectorMma::accumulate: a group of values is a B tile of 8 pairs of keys by 16 dims.
  template <int kD>
  static void accumulate(const std::byte* p, int rows, const std::byte* const* v, int groups, int head_dim,
                         float* o, Ahead* /*prefetch*/) {
    const int64_t ldo = padded_dim(head_dim) * 4;
    for (int row = 0; row < rows; row += 16) {
      const int m = rows - row < 16 ? rows - row : 16;
      for (int dim = 0; dim < head_dim; dim += 16) {
        const int n = head_dim - dim < 16 ? head_dim - dim : 16;
        Tile c{m, n * 4, {}};
        auto* out = reinterpret_cast<std::byte*>(o) + row * ldo + dim * 4;
        c.load(out, ldo);
        for (int g = 0; g < groups; ++g) {
          Tile a{m, kGroupKeys * 2, {}}, b{kGroupKeys / 2, n * 4, {}};
          a.load(p + row * (kBlockKeys * 2) + g * kGroupKeys * 2, kBlockKeys * 2);
          b.load(v[g] + dim * 4, int64_t{head_dim} * 4);
          tdpbf16ps(c, a, b);
        }
        c.store(out, ldo);
      }
    }
  }
};

}  // namespace pagemill::amx_emulated
