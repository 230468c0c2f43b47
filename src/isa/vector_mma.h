// The two matrix verbs for vector ISAs: register blocks of R query rows by N vectors.
//
// Operands, per group of 16 keys, as PM_TILES stores them: K [D/r][16][r], V [16/r][D][r], with r = 2 for
// bf16 and 1 for f32. A vector of 32-bit lanes therefore holds 16 (8, 1) keys of one r-tuple of dims, or 16
// (8, 1) dims of one r-tuple of keys, and no product needs a horizontal sum.
//
// Every output element is one chain of multiply-adds in ascending order of d or key, whatever R and N are:
// its bits do not depend on the rows that share its block. Only scores of few rows over keys that lie in rows
// are summed lane by lane, outside of batch-invariant mode.
#pragma once

#include <cstdint>

#include "attention/step.h"
#include "isa/few_rows.h"
#include "isa/mma_kind.h"

namespace pagemill {

struct VectorAt {
  const std::byte* at;
  int lanes;
};

// One term of a product, R rows by N vectors of K or V: acc[r][i] += row(r) * vector(i). vector(i) gives a
// place and its lanes, row(r) the place of the row's r-tuple in the row's own dtype.
template <class Isa, Mma kMma, int R, int N, class Vector, class Row>
PM_INLINE void multiply_term(typename Isa::F (&acc)[R][N], Vector vector, Row row) {
  if constexpr (kMma == Mma::kBf16) {
    typename Isa::B a[N];
    PM_UNROLL for (int i = 0; i < N; ++i) a[i] = Isa::load_pairs(vector(i).at, vector(i).lanes);
    PM_UNROLL for (int r = 0; r < R; ++r) {
      const auto x = Isa::broadcast_pair(row(r));
      PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::dot(acc[r][i], x, a[i]);
    }
  } else {
    // Half by half: the vectors of both would not fit the 16 registers of AVX2 beside its 12 sums.
    const auto half = [&](auto which) PM_INLINE_LAMBDA {
      constexpr int kHalf = decltype(which)::value;
      typename Isa::F a[N];
      PM_UNROLL for (int i = 0; i < N; ++i) {
        const auto [at, lanes] = vector(i);
        if constexpr (kMma == Mma::kF32Bf16) a[i] = Isa::template widen_bf16<kHalf>(at, lanes);
        if constexpr (kMma == Mma::kF32F16) a[i] = Isa::template widen_f16<kHalf>(at, lanes);
        if constexpr (kMma == Mma::kF32) a[i] = Isa::load(reinterpret_cast<const float*>(at), lanes);
      }
      PM_UNROLL for (int r = 0; r < R; ++r) {
        const auto x = Isa::set1(reinterpret_cast<const float*>(row(r))[kHalf]);
        PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::fma(x, a[i], acc[r][i]);
      }
    };
    half(std::integral_constant<int, 0>{});
    if constexpr (kMma != Mma::kF32) half(std::integral_constant<int, 1>{});
  }
}

template <class Isa, Mma kMma>
struct VectorMma : FewRows<Isa> {
  using F = typename Isa::F;
  static constexpr int kPack = kMma == Mma::kF32 ? 1 : 2;         // r
  static constexpr int kRowBytes = kMma == Mma::kBf16 ? 2 : 4;    // one element of q or p
  static constexpr int kStep = kPack * kRowBytes;                 // bytes of one term of a row
  static constexpr int kGroupVectors = kGroupKeys / Isa::kLanes;  // vectors of one group of keys
  static constexpr int kLaneBytes = 4;
  // The most rows that FewRows takes.
  static constexpr int kFromRows = kMma == Mma::kBf16 ? Isa::kRows : 0;
  static constexpr bool kStreams = false;  // an out-of-order core overlaps vector code by itself

  VectorMma(int /*rows*/, int /*head_dim*/, bool /*invariant*/) {}
  static constexpr int unit_groups() { return 1; }
  static void pair_keys(const std::byte**, int, int) {}
  static void pair_values(const std::byte**, int, int, int, std::byte*) {}
  template <int>
  struct Stream {
    struct Granule;
  };

  // What is fetched ahead is spread over the times that the rows take to meet a block.
  static PM_INLINE int passes_of(int rows) { return (rows + Isa::kRows - 1) / Isa::kRows; }

  // s[r][16 g + t] = q_r . k_{g,t}. q: [rows, ldq bytes]; k: groups; s: [rows, kBlockKeys].
  template <int kD>
  static PM_INLINE void scores(const std::byte* q, int64_t ldq, int rows, const std::byte* const* k,
                               int groups, int head_dim, float* s, Ahead* prefetch) {
    const int dim = kD ? kD : head_dim, passes = passes_of(rows);
    int done = 0;
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      int g = 0;
      const std::byte* q_rows = q + done * ldq;
      float* s_rows = s + done * kBlockKeys;
      const auto block = [&](auto n_const) PM_INLINE_LAMBDA {
        constexpr int kAtOnce = decltype(n_const)::value;
        float* to = s_rows + g * kGroupKeys;
        if (prefetch) {
          scores_block<kD, R, kAtOnce, true>(q_rows, ldq, k + g, dim, to, prefetch, passes);
        } else {
          scores_block<kD, R, kAtOnce, false>(q_rows, ldq, k + g, dim, to, nullptr, passes);
        }
        g += kAtOnce;
      };
      while (groups - g >= Isa::kGroups) block(std::integral_constant<int, Isa::kGroups>{});
      if (Isa::kGroups > 2 && groups - g >= 2) block(std::integral_constant<int, 2>{});
      while (Isa::kGroups > 1 && g < groups) block(std::integral_constant<int, 1>{});
      done += R;
    });
  }

  template <int kD, int R, int kGroupsAtOnce, bool kPrefetch>
  static PM_NOINLINE void scores_block(const std::byte* q, int64_t ldq, const std::byte* const* k,
                                       int head_dim, float* s, Ahead* prefetch, int passes) {
    const int dim = kD ? kD : head_dim;
    constexpr int N = kGroupsAtOnce * kGroupVectors;
    int wait = 1;
    // f32 sums restart every 32 dims: in longer chains partial sums grow beyond what the f32 bound counts on.
    const int terms = dim / kPack, chunk = kMma == Mma::kBf16 ? terms : 32 / kPack;
    for (int begin = 0; begin < terms; begin += chunk) {
      const int end = terms - begin < chunk ? terms : begin + chunk;
      F acc[R][N];
      PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) acc[r][i] = Isa::zero();
      for (int d = begin; d < end; ++d) {
        if constexpr (kPrefetch) fetch_in_turn<kGroupsAtOnce>(*prefetch, passes, wait);
        multiply_term<Isa, kMma>(
            acc,
            [&](int i) PM_INLINE_LAMBDA {
              return VectorAt{k[i / kGroupVectors] + d * (kGroupKeys * kLaneBytes) +
                                  i % kGroupVectors * (Isa::kLanes * kLaneBytes),
                              Isa::kLanes};
            },
            [&](int r) PM_INLINE_LAMBDA { return q + r * ldq + d * kStep; });
      }
      PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
        float* to = s + r * kBlockKeys + i * Isa::kLanes;
        Isa::store(to, begin == 0 ? acc[r][i] : Isa::add(Isa::load(to), acc[r][i]));
      }
    }
  }

  // o[r] += sum over keys of p[r][16 g + t] v_{g,t}. p: [rows, kBlockKeys]; o: [rows, padded_dim].
  template <int kD>
  static PM_INLINE void accumulate(const std::byte* p, int rows, const std::byte* const* v, int groups,
                                   int head_dim, float* o, Ahead* prefetch) {
    const int dim = kD ? kD : head_dim, ldo = padded_dim(dim);
    constexpr int kMost = Isa::kVectors;
    const int vectors = (dim + Isa::kLanes - 1) / Isa::kLanes, passes = passes_of(rows);
    int done = 0;
    for_blocks<Isa::kRows>(rows, [&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r_const)::value;
      const std::byte* p_rows = p + done * (kBlockKeys * kRowBytes);
      int begin = 0;
      for_blocks<kMost>(vectors, [&](auto n_const) PM_INLINE_LAMBDA {
        constexpr int N = decltype(n_const)::value;
        const int left = dim - begin * Isa::kLanes, full = N * Isa::kLanes;
        float* o_rows = o + done * ldo + begin * Isa::kLanes;
        const int offset = begin * Isa::kLanes * kLaneBytes;
        const auto block = [&](auto partial, int last_lanes) PM_INLINE_LAMBDA {
          constexpr bool kPartial = decltype(partial)::value;
          if (prefetch) {
            accumulate_block<kD, R, N, kPartial, true>(p_rows, v, groups, dim, offset, last_lanes, o_rows,
                                                       ldo, prefetch, passes);
          } else {
            accumulate_block<kD, R, N, kPartial, false>(p_rows, v, groups, dim, offset, last_lanes, o_rows,
                                                        ldo, nullptr, passes);
          }
        };
        if (left >= full) {
          block(std::false_type{}, Isa::kLanes);
        } else {
          block(std::true_type{}, left - (full - Isa::kLanes));
        }
        begin += N;
      });
      done += R;
    });
  }

  template <int kD, int R, int N, bool kPartial, bool kPrefetch>
  static PM_NOINLINE void accumulate_block(const std::byte* p, const std::byte* const* v, int groups,
                                           int head_dim, int offset, int last_lanes, float* o, int ldo,
                                           Ahead* prefetch, int passes) {
    const int dim = kD ? kD : head_dim;
    int wait = 1;
    F acc[R][N];
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      acc[r][i] = Isa::load(o + r * ldo + i * Isa::kLanes, Isa::kLanes);
    }
    constexpr int kTerms = kGroupKeys / kPack;
    const int64_t row = int64_t{dim} * kLaneBytes;
    for (int g = 0; g < groups; ++g) {
      const std::byte* v_rows = v[g] + offset;
      const std::byte* p_group = p + g * (kGroupKeys * kRowBytes);
      for (int t = 0; t < kTerms; ++t) {
        if constexpr (kPrefetch) fetch_in_turn<(N * Isa::kLanes + 15) / 16>(*prefetch, passes, wait);
        multiply_term<Isa, kMma>(
            acc,
            [&](int i) PM_INLINE_LAMBDA {
              return VectorAt{v_rows + t * row + i * (Isa::kLanes * kLaneBytes),
                              kPartial && i == N - 1 ? last_lanes : Isa::kLanes};
            },
            [&](int r) PM_INLINE_LAMBDA { return p_group + r * (kBlockKeys * kRowBytes) + t * kStep; });
      }
    }
    PM_UNROLL for (int r = 0; r < R; ++r) PM_UNROLL for (int i = 0; i < N; ++i) {
      Isa::store(o + r * ldo + i * Isa::kLanes, acc[r][i]);
    }
  }
};

}  // namespace pagemill
