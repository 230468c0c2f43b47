// The two matrix verbs on eight tile registers of 16 rows by 64 bytes, for bf16 rows, keys and values.
//
// A product adds to 16 x 16 f32 sums the product of a tile A (rows of q or of weights, 16 pairs of terms) and
// a tile B (16 pairs of terms, 16 columns of 32 bits). PM_TILES is made for B: a group of keys [D/2][16][2]
// is a column of tiles as it lies, and two neighbouring groups of values [8][D][2] are a row of them.
//
// A product costs a cycle for each row of A, whatever the other sides are, so tiles must be deep: 32 keys,
// which is two groups. Groups of one page lie side by side; where two do not (pages of 16, edges of what is
// visible), pair_values() copies them together once per block, for all the query rows of the item. With the
// up to 16 rows of decode half-deep products, a group each, cost less than the copy. But their sums end
// elsewhere, and batch invariance needs the same ones for all rows: there every pair of groups is one
// product, always.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int tile_row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(tile_row_bytes);
  }
};

template <int N, class F>
PM_INLINE void for_each_index(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>)
      PM_INLINE_LAMBDA { (f(std::integral_constant<int, i>{}), ...); }(std::make_integer_sequence<int, N>{});
}

template <class Tiles, int kD>
class TileStream;

// Tiles: save, configure, release, zero<t>, load<t>, load_once<t>, store<t>, dpbf16<sums, a, b>; of the
// machine or emulated. Lives as long as an item: the tiles are configured once, and released so that nobody
// saves them later.
template <class Tiles>
class TileMma {
 public:
  static constexpr bool kStreams = true;
  static constexpr int kFromRows = 0;
  template <int kD>
  using Stream = TileStream<Tiles, kD>;

  // invariant: the bits of a row depend on nothing but its own query, keys and values.
  TileMma(int rows, int head_dim, bool invariant)
      : rows_(tile_rows(rows)), few_(rows <= 16 && head_dim % (2 * kPairs) == 0 && !invariant) {
    const int tail = head_dim / 2 % kPairs;
    TileConfig config;
    for (int sums = 0; sums < 4; ++sums) config.set(sums, rows_, 64);
    config.set(kFull.a[0], rows_, 64);
    config.set(kFull.b[0], kPairs, 64);
    const int second = few_ ? kPairs / 2 : tail ? tail : kPairs;
    config.set(kTail.a[0], rows_, second * 4);
    config.set(kTail.b[0], second, 64);
    Tiles::save(before_);
    Tiles::configure(config);
  }
  // The thread may be a host's that has configured tiles for products of its own, once for all.
  ~TileMma() {
    if (before_.palette != 0) {
      Tiles::configure(before_);
    } else {
      Tiles::release();
    }
  }
  TileMma(const TileMma&) = delete;
  TileMma& operator=(const TileMma&) = delete;

  // Groups at multiples of which what is multiplied begins and ends.
  int unit_groups() const { return few_ ? 1 : 2; }

  // Makes the groups [begin, end) of a block whole units: a group that a pair lacks borrows the other's keys,
  // whose scores are masked.
  void pair_keys(const std::byte** k, int begin, int end) const {
    if (few_) return;
    if (begin % 2) k[begin - 1] = k[begin];
    if (end % 2) k[end] = k[end - 1];
  }
  // The same for values, with zeros for those of a group that lacks; and pairs lie side by side, in `stage`
  // [keys of the block * D'] bf16 where they do not.
  void pair_values(const std::byte** v, int begin, int end, int head_dim, std::byte* stage) const {
    if (few_) return;
    const int64_t row = int64_t{head_dim} * 4, padded_row = int64_t{padded_dim(head_dim)} * 4;
    std::byte* to = stage;
    for (int g = begin / 2 * 2; g < end; g += 2, to += kPairs * padded_row) {
      const bool first = g >= begin, second = g + 1 < end;
      if (first && second && row == padded_row && v[g + 1] == v[g] + kPairs / 2 * row) continue;
      copy_values(first ? v[g] : nullptr, row, to, padded_row);
      copy_values(second ? v[g + 1] : nullptr, row, to + kPairs / 2 * padded_row, padded_row);
      v[g] = to;
    }
  }

  // As VectorMma::scores.
  template <int kD>
  void scores(const std::byte* q, int64_t ldq, int rows, const std::byte* const* k, int groups, int head_dim,
              float* s, Ahead* ahead) const {
    if (few_) {
      int g = 0;
      for (; g + 4 <= groups; g += 4) {
        scores_of_few<kD, 4>(q, ldq, k + g, head_dim, s + g * kGroupKeys, ahead);
      }
      for (; g < groups; ++g) scores_of_few<kD, 1>(q, ldq, k + g, head_dim, s + g * kGroupKeys, ahead);
    } else if (rows > rows_) {
      for (int g = 0; g < groups; g += 2) {
        scores_block<2, 2>(q, ldq, k + g, head_dim, s + g * kGroupKeys, ahead);
      }
    } else {
      int g = 0;
      for (; g + 4 <= groups; g += 4) {
        scores_block<1, 4>(q, ldq, k + g, head_dim, s + g * kGroupKeys, ahead);
      }
      if (g < groups) scores_block<1, 2>(q, ldq, k + g, head_dim, s + g * kGroupKeys, ahead);
    }
  }

  // As VectorMma::accumulate, of values that pair_values() has seen.
  template <int kD>
  void accumulate(const std::byte* p, int rows, const std::byte* const* v, int groups, int head_dim, float* o,
                  Ahead* ahead) const {
    const int ldo = padded_dim(head_dim), columns = ldo / 16;
    int column = 0;
    const auto blocks_of = [&](auto r, auto n) PM_INLINE_LAMBDA {
      constexpr int R = decltype(r)::value, N = decltype(n)::value;
      for (; column + N <= columns; column += N) {
        accumulate_block<R, N>(p, rows, v, groups, head_dim, ldo, column * 64, o + column * 16, ahead);
      }
    };
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, 2> two;
    if (few_) {
      for (; column + 4 <= columns; column += 4) {
        accumulate_few<kD, 4>(p, rows, v, groups, head_dim, column * 64, o + column * 16, ahead);
      }
      for (; column < columns; column += 2) {
        accumulate_few<kD, 2>(p, rows, v, groups, head_dim, column * 64, o + column * 16, ahead);
      }
    } else if (rows > rows_) {
      blocks_of(two, two);
      blocks_of(two, one);
    } else {
      blocks_of(one, std::integral_constant<int, 4>{});
      blocks_of(one, two);
      blocks_of(one, one);
    }
  }

  // The products of R tiles of rows and N groups of keys, in steps of 32 dims: begin(sums) before the first
  // product of each of the sums [R][N], after(step) after each step. kD, if known, has the steps unrolled.
  template <int R, int N, int kD, class Begin, class After>
  PM_INLINE void scores_steps(const std::byte* q, int64_t ldq, const std::byte* const* k, int head_dim,
                              Begin&& begin, After&& after) const {
    const int pairs = (kD ? kD : head_dim) / 2, full = pairs / kPairs, tail = pairs % kPairs;
    const auto step = [&](int d, auto operands, auto&& first) PM_INLINE_LAMBDA {
      multiply<R, N, decltype(operands)::value>(
          q + d * 64, ldq, [&](int n) PM_INLINE_LAMBDA { return k[n] + d * (kPairs * 64); }, 64, first);
      after(d);
    };
    const auto any = [&](int d, auto&& first) PM_INLINE_LAMBDA {
      if (tail == 0) {
        step(d, constant<kBoth>(), first);
      } else if (d < full) {
        step(d, constant<kFull>(), first);
      } else {
        step(d, constant<kTail>(), first);
      }
    };
    any(0, begin);
    if constexpr (kD > 0) {
      PM_UNROLL for (int d = 1; d < kD / 2 / kPairs; ++d) any(d, kBegun);
    } else {
      for (int d = 1; d < full; ++d) any(d, kBegun);
    }
    if (tail > 0 && full > 0) any(full, kBegun);
  }
  // The same of R tiles of weights [R][kBlockKeys] and N tiles of values at `offset` bytes, in kSteps (0: in
  // `steps`) pairs of groups.
  template <int R, int N, int kD, int kSteps, class Begin, class After>
  PM_INLINE void values_steps(const std::byte* p, const std::byte* const* v, int steps, int head_dim,
                              int offset, Begin&& begin, After&& after) const {
    const int dim = kD ? kD : head_dim;
    const auto step = [&](int g, auto operands, auto&& first) PM_INLINE_LAMBDA {
      const std::byte* b = v[2 * g] + offset;
      multiply<R, N, decltype(operands)::value>(
          p + g * (kGranuleKeys * 2), kBlockKeys * 2, [&](int n) PM_INLINE_LAMBDA { return b + n * 64; },
          int64_t{padded_dim(dim)} * 4, first);
      after(g);
    };
    const auto any = [&](int g, auto&& first) PM_INLINE_LAMBDA {
      if (dim / 2 % kPairs == 0) {
        step(g, constant<kBoth>(), first);
      } else {
        step(g, constant<kFull>(), first);
      }
    };
    any(0, begin);
    if constexpr (kSteps > 0) {
      PM_UNROLL for (int g = 1; g < kSteps; ++g) any(g, kBegun);
    } else {
      for (int g = 1; g < steps; ++g) any(g, kBegun);
    }
  }

  // A tile may be higher than the rows that are left: what lies behind those is not ours to write.
  template <int kSums>
  PM_INLINE void store_sums(float* o, int ldo, int rows) const {
    if (rows >= rows_) {
      Tiles::template store<kSums>(o, ldo * 4);
      return;
    }
    alignas(64) float whole[16][16];
    Tiles::template store<kSums>(whole, sizeof whole[0]);
    for (int r = 0; r < rows; ++r) std::memcpy(o + int64_t{r} * ldo, whole[r], sizeof whole[r]);
  }

 private:
  static constexpr int kPairs = 16;  // of terms in a product
  static constexpr auto kBegun = [](auto) {};

  // Registers 0 to 3 are sums; these two pairs are the operands. Where D is a multiple of 32 both have the
  // full shape and take turns. Otherwise the second has the shape of what is left of a row of D.
  struct Operands {
    int a[2], b[2];
  };
  static constexpr Operands kFull = {{4, 4}, {5, 5}}, kTail = {{6, 6}, {7, 7}}, kBoth = {{4, 6}, {5, 7}};

  // Rows of A and of the sums: those that there are up to 16, half of them up to 32.
  static int tile_rows(int rows) { return rows <= 16 ? rows : rows <= 32 ? (rows + 1) / 2 : 16; }

  static void copy_values(const std::byte* from, int64_t row, std::byte* to, int64_t padded_row) {
    if (from && row == padded_row) {
      std::memcpy(to, from, static_cast<size_t>(kPairs / 2 * row));
      return;
    }
    std::memset(to, 0, static_cast<size_t>(kPairs / 2 * padded_row));
    for (int pair = 0; from && pair < kPairs / 2; ++pair) {
      std::memcpy(to + pair * padded_row, from + pair * row, static_cast<size_t>(row));
    }
  }

  template <int R, int N>
  PM_NOINLINE void scores_block(const std::byte* q, int64_t ldq, const std::byte* const* k, int head_dim,
                                float* s, Ahead* ahead) const {
    scores_steps<R, N, 0>(
        q, ldq, k, head_dim,
        [](auto sums) PM_INLINE_LAMBDA { Tiles::template zero<decltype(sums)::value>(); },
        [&](int) PM_INLINE_LAMBDA { fetch<N * kPairs>(ahead); });
    for_each_tile<R, N>([&](auto sums, int r, int n) PM_INLINE_LAMBDA {
      Tiles::template store<decltype(sums)::value>(s + r * rows_ * kBlockKeys + n * 16, kBlockKeys * 4);
    });
  }

  template <int R, int N>
  PM_NOINLINE void accumulate_block(const std::byte* p, int rows, const std::byte* const* v, int groups,
                                    int head_dim, int ldo, int offset, float* o, Ahead* ahead) const {
    const auto at = [&](int sums)
                        PM_INLINE_LAMBDA { return o + int64_t{sums / N} * rows_ * ldo + sums % N * 16; };
    values_steps<R, N, 0, 0>(
        p, v, groups / 2, head_dim, offset,
        [&](auto sums) PM_INLINE_LAMBDA {
          Tiles::template load<decltype(sums)::value>(at(decltype(sums)::value), int64_t{ldo} * 4);
        },
        [&](int) PM_INLINE_LAMBDA { fetch<N * kPairs>(ahead); });
    for_each_tile<R, N>([&](auto sums, int r, int) PM_INLINE_LAMBDA {
      store_sums<decltype(sums)::value>(at(decltype(sums)::value), ldo, rows - r * rows_);
    });
  }

  // Decode fetches after each tile what it has read: a core has sixteen first-level misses under way, and a
  // burst of as many lines as four tiles keeps the next tile waiting (0.60 of bandwidth, not 0.63).
  template <int kD, int N>
  PM_NOINLINE void scores_of_few(const std::byte* q, int64_t ldq, const std::byte* const* k, int head_dim,
                                 float* s, Ahead* ahead) const {
    const int dim = kD ? kD : head_dim;
    Ahead::Place place = place_of(ahead);
    for_each_index<N>([](auto n) PM_INLINE_LAMBDA { Tiles::template zero<n>(); });
    for (int d = 0; d < dim / (2 * kPairs); ++d) {
      Tiles::template load<kFull.a[0]>(q + d * 64, ldq);
      for_each_index<N>([&](auto n) PM_INLINE_LAMBDA {
        Tiles::template load_once<kFull.b[0]>(k[n] + d * (kPairs * 64), 64);
        fetch<kPairs>(ahead, place);
        Tiles::template dpbf16<n, kFull.a[0], kFull.b[0]>();
      });
    }
    if (ahead) ahead->place = place;
    for_each_index<N>([&](auto n) PM_INLINE_LAMBDA { Tiles::template store<n>(s + n * 16, kBlockKeys * 4); });
  }

  // A group of values at a time, half as deep as a tile: pages of 16 keep their values where they lie.
  template <int kD, int N>
  PM_NOINLINE void accumulate_few(const std::byte* p, int rows, const std::byte* const* v, int groups,
                                  int head_dim, int offset, float* o, Ahead* ahead) const {
    const int dim = kD ? kD : head_dim;
    Ahead::Place place = place_of(ahead);
    for_each_index<N>([&](auto n)
                          PM_INLINE_LAMBDA { Tiles::template load<n>(o + n * 16, int64_t{dim} * 4); });
    for (int g = 0; g < groups; ++g) {
      Tiles::template load<kTail.a[0]>(p + g * (kGroupKeys * 2), kBlockKeys * 2);
      for_each_index<N>([&](auto n) PM_INLINE_LAMBDA {
        Tiles::template load_once<kTail.b[0]>(v[g] + offset + n * 64, int64_t{dim} * 4);
        fetch<kPairs / 2>(ahead, place);
        Tiles::template dpbf16<n, kTail.a[0], kTail.b[0]>();
      });
    }
    if (ahead) ahead->place = place;
    for_each_index<N>([&](auto n) PM_INLINE_LAMBDA { store_sums<n>(o + n * 16, dim, rows); });
  }

  static PM_INLINE Ahead::Place place_of(const Ahead* ahead) { return ahead ? ahead->place : Ahead::Place(); }
  template <int kLines>
  static PM_INLINE void fetch(const Ahead* ahead, Ahead::Place& place) {
    if (ahead) for_each_index<kLines / 4>([&](auto) PM_INLINE_LAMBDA { ahead->step<4>(place); });
  }
  template <int kLines>
  static PM_INLINE void fetch(Ahead* ahead) {
    if (ahead) fetch<kLines>(ahead, ahead->place);
  }

  // sums[r][n] += A_r B_n. begin(sums) comes before the first product of each of the sums.
  template <int R, int N, Operands kRegisters, class Columns, class Begin>
  PM_INLINE void multiply(const std::byte* a, int64_t lda, Columns b, int64_t ldb, Begin&& begin) const {
    for_each_index<R>([&](auto r_const) PM_INLINE_LAMBDA {
      constexpr int r = decltype(r_const)::value;
      constexpr int kA = kRegisters.a[r];
      if constexpr (r > 0) Tiles::template load<kA>(a + r * rows_ * lda, lda);
      // Even rows take the columns forwards, odd ones backwards, from the B that is there.
      for_each_index<N>([&](auto i_const) PM_INLINE_LAMBDA {
        constexpr int i = decltype(i_const)::value, n = r == 0 ? i : N - 1 - i;
        constexpr int kB = kRegisters.b[n % 2];
        constexpr bool kThere = r > 0 && (i == 0 || kRegisters.b[0] != kRegisters.b[1]);
        if constexpr (!kThere) Tiles::template load_once<kB>(b(n), ldb);
        if constexpr (r == 0 && i == 0) Tiles::template load<kA>(a, lda);
        begin(std::integral_constant<int, r * N + n>{});
        Tiles::template dpbf16<r * N + n, kA, kB>();
      });
    });
  }

  template <Operands kRegisters>
  struct Constant {
    static constexpr Operands value = kRegisters;
  };
  template <Operands kRegisters>
  static constexpr Constant<kRegisters> constant() {
    return {};
  }

  template <int R, int N, class F>
  static PM_INLINE void for_each_tile(F f) {
    for_each_index<R * N>([&](auto i)
                              PM_INLINE_LAMBDA { f(i, decltype(i)::value / N, decltype(i)::value % N); });
  }

  const int rows_;  // of A
  const bool few_;  // rows of decode, whose values are multiplied half as deep
  TileConfig before_;
};

}  // namespace pagemill
