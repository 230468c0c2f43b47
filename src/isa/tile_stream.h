// Tiles of up to 32 query rows against many keys, 32 keys (a granule) at a time: the products of one granule,
// and those of weights and values of the unit before, run beside the softmax of the granule before it.
//
// What binds on the hardware (Emerald Rapids; a product of 16 rows takes 16 cycles): a tile comes from the
// second-level cache in 23 cycles and from the first in 9; a tile is stored in 16 cycles to lines of the
// first level, in 64 to lines that it lacks. So keys and values pass the first level by (load_once), and what
// is written stays in it: scores of one granule (4 KiB), weights of two units (2 x 8 KiB), and the sums of
// the rows at work (16 KiB with D = 128), which meet all keys of a chunk before the next rows have their
// turn. Sums are stored late, when the products that need their registers next begin: a store that waits for
// its product would keep the ones behind it from starting.
#pragma once

#include "attention/step.h"
#include "isa/tile_mma.h"

namespace pagemill {

// Softmax: weigh(granule, row_begin, row_end), rows in order; fetch(), called now and then;
// unit_ends(granule), after the last granule of a unit is weighed and before its weights meet values.
template <class Tiles, int kD>
class TileStream {
 public:
  struct Granule {
    const std::byte* q;         // [rows, ldq bytes]
    const std::byte* const* k;  // two groups
    const std::byte* const* v;  // of the unit's first granule
    uint16_t* p;                // [rows, kBlockKeys] weights of the unit
    float* o;                   // [rows, D']
    int rows;
    int index, count;  // this granule and all of them in its unit
    int row;           // of the item, the first
    int32_t key;       // its first
  };

  TileStream(const TileMma<Tiles>& mma, int head_dim, float* s)
      : mma_(mma), head_dim_(kD ? kD : head_dim), s_(s) {}

  template <class Softmax>
  PM_INLINE void push(const Granule& next, Softmax& softmax) {
    advance(&next, softmax);
    waiting_ = next;
  }

  // Ends what was pushed.
  template <class Softmax>
  void finish(Softmax& softmax) {
    advance(nullptr, softmax);
    waiting_.rows = 0;
    const auto nothing = [] {};
    for (int pair = 0; job_.rows > 0 && pair < pairs(); ++pair) multiply_values(pair, nothing);
    store_sums();
    job_.rows = 0;
  }

 private:
  static constexpr int kRows = 16;  // of a tile of more than 32 rows

  PM_INLINE int dim() const { return kD ? kD : head_dim_; }
  PM_INLINE int ldo() const { return padded_dim(dim()); }
  PM_INLINE int pairs() const { return (dim() + 31) / 32; }

  // Sums that are still in registers, and where they belong.
  struct Pending {
    float* at[4] = {};
    int ld = 0, tiles = 0;
    int rows = 0, columns = 0;  // where fewer rows than the tiles have are to be written
  };

  // Weighs the waiting granule's rows, a share after each step of the products.
  template <class Softmax>
  struct Beside {
    Softmax& softmax;
    const Granule& granule;
    const int share;  // rows after a step
    int weighed = 0;

    PM_INLINE void operator()() {
      softmax.fetch();
      weigh(weighed + share < granule.rows ? weighed + share : granule.rows);
    }
    PM_INLINE void weigh(int end) {
      if (end > weighed) softmax.weigh(granule, weighed, end);
      weighed = end;
    }
  };

  template <class Softmax>
  PM_INLINE void advance(const Granule* next, Softmax& softmax) {
    const int begin = waiting_.rows && job_.rows ? pairs() * waiting_.index / waiting_.count : 0;
    const int end = waiting_.rows && job_.rows ? pairs() * (waiting_.index + 1) / waiting_.count : 0;
    const int steps = (end - begin) * job_.count + (next ? pairs() : 0);
    if (steps == 0) store_sums();
    Beside<Softmax> beside{softmax, waiting_, steps ? (waiting_.rows + steps - 1) / steps : 0};
    for (int pair = begin; pair < end; ++pair) multiply_values(pair, beside);
    if (next) multiply_keys(*next, beside);
    beside.weigh(waiting_.rows);
    if (waiting_.rows && waiting_.index + 1 == waiting_.count) {
      job_ = waiting_;
      if (softmax.unit_ends(job_)) {
        store_sums();
        softmax.scale_sums(job_);
      }
    }
  }

  template <class Next>
  PM_INLINE void multiply_keys(const Granule& g, Next&& next) {
    if (g.rows > kRows) {
      multiply_keys_of<2>(g, next);
    } else {
      multiply_keys_of<1>(g, next);
    }
  }
  template <int R, class Next>
  PM_INLINE void multiply_keys_of(const Granule& g, Next&& next) {
    mma_.template scores_steps<R, 2, kD>(
        g.q, int64_t{dim()} * 2, g.k, head_dim_,
        [&](auto sums) PM_INLINE_LAMBDA {
          store_sums<decltype(sums)::value>();
          Tiles::template zero<decltype(sums)::value>();
        },
        [&](int step) PM_INLINE_LAMBDA {
          if (step == 0) store_rest<2 * R>();
          next();
        });
    set_pending<R, 2>(s_, kGranuleKeys, 32);
  }

  // Dims [32 pair, 32 pair + 32) of the job.
  template <class Next>
  PM_INLINE void multiply_values(int pair, Next&& next) {
    const bool two = pair * 2 + 2 <= ldo() / 16;
    if (job_.rows > kRows && two) {
      multiply_values_of<2, 2>(pair, next);
    } else if (job_.rows > kRows) {
      multiply_values_of<2, 1>(pair, next);
    } else if (two) {
      multiply_values_of<1, 2>(pair, next);
    } else {
      multiply_values_of<1, 1>(pair, next);
    }
  }
  template <int R, int N, class Next>
  PM_INLINE void multiply_values_of(int pair, Next&& next) {
    if (job_.count == kUnitGranules) {
      multiply_values_in<R, N, kUnitGranules>(pair, next);
    } else {
      multiply_values_in<R, N, 0>(pair, next);
    }
  }
  template <int R, int N, int kSteps, class Next>
  PM_INLINE void multiply_values_in(int pair, Next&& next) {
    float* o = job_.o + pair * 32;
    mma_.template values_steps<R, N, kD, kSteps>(
        reinterpret_cast<const std::byte*>(job_.p), job_.v, job_.count, head_dim_, pair * 128,
        [&](auto sums) PM_INLINE_LAMBDA {
          constexpr int i = decltype(sums)::value;
          store_sums<i>();
          Tiles::template load<i>(o + int64_t{i / N} * kRows * ldo() + i % N * 16, int64_t{ldo()} * 4);
        },
        [&](int step) PM_INLINE_LAMBDA {
          if (step == 0) store_rest<R * N>();
          next();
        });
    set_pending<R, N>(o, ldo(), job_.rows);
  }

  template <int R, int N>
  PM_INLINE void set_pending(float* at, int ld, int rows) {
    const int whole = kRows * R;
    for_each_index<R * N>(
        [&](auto i) PM_INLINE_LAMBDA { pending_.at[i] = at + int64_t{i / N} * kRows * ld + i % N * 16; });
    pending_.ld = ld, pending_.tiles = R * N;
    pending_.rows = rows < whole ? rows : 0, pending_.columns = N;
  }
  template <int i>
  PM_INLINE void store_sums() {
    if (i >= pending_.tiles) return;
    if (pending_.rows == 0) {
      Tiles::template store<i>(pending_.at[i], int64_t{pending_.ld} * 4);
    } else {
      mma_.template store_sums<i>(pending_.at[i], pending_.ld, pending_.rows - i / pending_.columns * kRows);
    }
  }
  template <int kDone>
  PM_INLINE void store_rest() {
    for_each_index<4 - kDone>([&](auto i) PM_INLINE_LAMBDA { store_sums<kDone + decltype(i)::value>(); });
    pending_.tiles = 0;
  }
  void store_sums() { store_rest<0>(); }

  const TileMma<Tiles>& mma_;
  const int head_dim_;
  float* const s_;
  Pending pending_;
  Granule waiting_{}, job_{};  // rows = 0: none
};

}  // namespace pagemill
