// As the verbs of vector_mma.h, in bf16, from K and V as they lie in rows, one pointer for each key, or in
// groups of fp8: for up to Isa::kRows rows of queries, where packing or widening first costs more than it
// spares.
#pragma once

#include <cstdint>

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

template <class Isa>
struct FewRows {
  using F = typename Isa::F;
  static constexpr int kRowBytes = 2, kStep = 4;  // of one element of q or p, of one term of a row
  static constexpr int kFromRowsDims = 32;        // dims from rows come so many at a time

  // in_order: sums in the order of d, as scores has them; else by lanes, which spares turning the keys over.
  template <int kD>
  static PM_INLINE void scores_from_rows(const std::byte* q, int64_t ldq, int rows, const std::byte* const* k,
                                         int groups, int head_dim, float* s, bool in_order, Ahead& ahead) {
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      for (int g = 0; g < groups; ++g) {
        const auto* keys = k + g * kGroupKeys;
        if (in_order) {
          group_scores<kD, R>(q, ldq, keys, head_dim, s + g * kGroupKeys, ahead);
        } else {
          group_scores_by_lanes<kD, R>(q, ldq, keys, head_dim, s + g * kGroupKeys, ahead);
        }
      }
    });
  }

  // Each key's 32 dims meet those of the queries; what four keys have in their lanes is summed into one
  // vector.
  template <int kD, int R>
  static PM_NOINLINE void group_scores_by_lanes(const std::byte* q, int64_t ldq, const std::byte* const* k,
                                                int head_dim, float* s, Ahead& ahead) {
    const int bytes = (kD ? kD : head_dim) * kRowBytes;
    alignas(64) float sums[R][4][kGroupKeys];
    for (int t = 0; t < kGroupKeys; t += 4) {
      F acc[R][4];
      PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int j = 0; j < 4; ++j) acc[r][j] = Isa::zero();
      for (int at = 0; at < bytes; at += 64) {
        fetch<4>(ahead);
        typename Isa::B keys[4];
        PM_UNROLL for (int j = 0; j < 4; ++j) keys[j] = Isa::load_pairs(k[t + j] + at, Isa::kLanes);
        PM_UNROLL for (int r = 0; r < R; ++r) {
          const auto x = Isa::load_pairs(q + r * ldq + at, Isa::kLanes);
          PM_UNROLL for (int j = 0; j < 4; ++j) acc[r][j] = Isa::dot(acc[r][j], x, keys[j]);
        }
      }
      PM_UNROLL for (int r = 0; r < R; ++r) Isa::store(sums[r][t / 4], Isa::add_in_quads(acc[r]));
    }
    PM_UNROLL for (int r = 0; r < R; ++r) {
      F quads[4];
      PM_UNROLL for (int j = 0; j < 4; ++j) quads[j] = Isa::load(sums[r][j]);
      Isa::store(s + r * kBlockKeys, Isa::add_quads(quads));
    }
  }

  template <int kD, int R>
  static PM_NOINLINE void group_scores(const std::byte* q, int64_t ldq, const std::byte* const* k,
                                       int head_dim, float* s, Ahead& ahead) {
    const int dim = kD ? kD : head_dim;
    F acc[R];
    PM_UNROLL for (int r = 0; r < R; ++r) acc[r] = Isa::zero();
    for (int at = 0; at < dim * kRowBytes; at += 16) {
      fetch<4>(ahead);
      typename Isa::B quads[4];
      Isa::transpose_quad(k, at, quads);
      PM_UNROLL for (int j = 0; j < 4; ++j) {
        PM_UNROLL for (int r = 0; r < R; ++r) {
          acc[r] = Isa::dot(acc[r], Isa::broadcast_pair(q + r * ldq + at + 4 * j), quads[j]);
        }
      }
    }
    PM_UNROLL for (int r = 0; r < R; ++r) Isa::store(s + r * kBlockKeys, acc[r]);
  }

  template <int kD>
  static PM_INLINE void accumulate_from_rows(const std::byte* p, int rows, const std::byte* const* v,
                                             int groups, int head_dim, float* o, Ahead& ahead) {
    const int dim = kD ? kD : head_dim, ldo = padded_dim(dim);
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      int d = 0;
      for (; d + 64 <= dim; d += 64) dims_from_rows<R, 2>(p, v, groups, d, o + d, ldo, ahead);
      if (d < dim) dims_from_rows<R, 1>(p, v, groups, d, o + d, ldo, ahead);
    });
  }

  // Dims [d, d + 32 n).
  template <int R, int n>
  static PM_NOINLINE void dims_from_rows(const std::byte* p, const std::byte* const* v, int groups, int d,
                                         float* o, int ldo, Ahead& ahead) {
    constexpr int N = 2 * n;
    F acc[R][N];
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      acc[r][i] = Isa::load(o + r * ldo + i * Isa::kLanes);
    }
    for (int t = 0; t < groups * kGroupKeys; t += 2) {
      fetch<N>(ahead);
      typename Isa::B pairs[N];
      PM_UNROLL for (int i = 0; i < N; i += 2) {
        const int64_t offset = (d + i * Isa::kLanes) * kRowBytes;
        Isa::load_interleaved(v[t] + offset, v[t + 1] + offset, pairs[i], pairs[i + 1]);
      }
      PM_UNROLL for (int r = 0; r < R; ++r) {
        const auto weights = Isa::broadcast_pair(p + (r * kBlockKeys + t) * kRowBytes);
        PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::dot(acc[r][i], weights, pairs[i]);
      }
    }
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      Isa::store(o + r * ldo + i * Isa::kLanes, acc[r][i]);
    }
  }

  static PM_INLINE void scores_from_f8(const std::byte* q, int64_t ldq, int rows, pm_dtype dtype,
                                       const std::byte* const* k, int groups, int head_dim, float* s,
                                       Ahead& ahead) {
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      int g = 0;
      for (; g + 2 <= groups; g += 2)
        f8_scores<R, 2>(q, ldq, dtype, k + g, head_dim, s + g * kGroupKeys, ahead);
      if (g < groups) f8_scores<R, 1>(q, ldq, dtype, k + g, head_dim, s + g * kGroupKeys, ahead);
    });
  }

  template <int R, int N>
  static PM_NOINLINE void f8_scores(const std::byte* q, int64_t ldq, pm_dtype dtype,
                                    const std::byte* const* k, int head_dim, float* s, Ahead& ahead) {
    const auto lookup = Isa::lookup(dtype);
    F acc[R][N];
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::zero();
    for (int64_t at = 0; at < head_dim * kRowBytes; at += 4 * kRowBytes) {
      fetch<N>(ahead);
      typename Isa::B pairs[2][N];
      PM_UNROLL for (int i = 0; i < N; ++i) {
        Isa::widen_f8(k[i] + at * (kGroupKeys / kRowBytes), Isa::kLanes, lookup, pairs[0][i], pairs[1][i]);
      }
      dot_both<R, N>(acc, pairs, [&](int r) PM_INLINE_LAMBDA { return q + r * ldq + at; });
    }
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      Isa::store(s + r * kBlockKeys + i * Isa::kLanes, acc[r][i]);
    }
  }

  // acc[r] += the product of a row's four elements with two pairs.
  template <int R, int N, class Row>
  static PM_INLINE void dot_both(F (&acc)[R][N], const typename Isa::B (&pairs)[2][N], Row row) {
    PM_UNROLL for (int half = 0; half < 2; ++half) {
      PM_UNROLL for (int r = 0; r < R; ++r) {
        const auto x = Isa::broadcast_pair(row(r) + half * kStep);
        PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::dot(acc[r][i], x, pairs[half][i]);
      }
    }
  }

  static PM_INLINE void accumulate_from_f8(const std::byte* p, int rows, pm_dtype dtype,
                                           const std::byte* const* v, int groups, int head_dim, float* o,
                                           Ahead& ahead) {
    const int ldo = padded_dim(head_dim);
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      int d = 0;
      for (; d + 32 <= head_dim; d += 32)
        f8_accumulate<R, 2>(p, dtype, v, groups, head_dim, d, o + d, ldo, ahead);
      for (; d < head_dim; d += 16) f8_accumulate<R, 1>(p, dtype, v, groups, head_dim, d, o + d, ldo, ahead);
    });
  }

  // Dims [d, d + 16 N), of which the last may not be there.
  template <int R, int N>
  static PM_NOINLINE void f8_accumulate(const std::byte* p, pm_dtype dtype, const std::byte* const* v,
                                        int groups, int head_dim, int d, float* o, int ldo, Ahead& ahead) {
    const auto lookup = Isa::lookup(dtype);
    const int left = head_dim - d, lanes = N == 1 && left < Isa::kLanes ? left : Isa::kLanes;
    F acc[R][N];
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      acc[r][i] = Isa::load(o + r * ldo + i * Isa::kLanes);
    }
    for (int t = 0; t < groups * kGroupKeys; t += 4) {
      fetch<N>(ahead);
      const std::byte* words = v[t / kGroupKeys] + (int64_t{t % kGroupKeys} / 4 * head_dim + d) * 4;
      typename Isa::B pairs[2][N];
      PM_UNROLL for (int i = 0; i < N; ++i) {
        Isa::widen_f8(words + i * Isa::kLanes * 4, lanes, lookup, pairs[0][i], pairs[1][i]);
      }
      dot_both<R, N>(acc, pairs,
                     [&](int r) PM_INLINE_LAMBDA { return p + (r * kBlockKeys + t) * kRowBytes; });
    }
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      Isa::store(o + r * ldo + i * Isa::kLanes, acc[r][i]);
    }
  }
};

}  // namespace pagemill
