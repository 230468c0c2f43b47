// One row of a block: scores to weights, with the running maximum of online softmax.
#pragma once

#include <limits>

#include "attention/merge.h"
#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

// Minimax polynomials of 2^f on [0, 1]: relative error 7.5e-5 (bf16 weights keep 2^-9) and 7.5e-8.
template <class Isa>
struct Exp2Short {
  PM_INLINE typename Isa::F operator()(typename Isa::F f) const {
    auto p = Isa::fma(Isa::set1(0.078024521f), f, Isa::set1(0.22606716f));
    p = Isa::fma(p, f, Isa::set1(0.69583356f));
    return Isa::fma(p, f, Isa::set1(0.9999252f));
  }
};
template <class Isa>
struct Exp2Long {
  PM_INLINE typename Isa::F operator()(typename Isa::F f) const {
    auto p = Isa::fma(Isa::set1(1.8775767e-3f), f, Isa::set1(8.9893397e-3f));
    p = Isa::fma(p, f, Isa::set1(0.055826318f));
    p = Isa::fma(p, f, Isa::set1(0.24015361f));
    p = Isa::fma(p, f, Isa::set1(0.69315308f));
    return Isa::fma(p, f, Isa::set1(0.99999994f));
  }
};

// tanh: Cephes' polynomial below 0.625, 1 - 2 / (exp(2x) + 1) above; relative error 2e-7.
template <class Isa>
PM_INLINE typename Isa::F tanh(typename Isa::F x) {
  using F = typename Isa::F;
  const F a = Isa::abs(x), z = Isa::mul(x, x);
  F p = Isa::fma(Isa::set1(-5.70498872745e-3f), z, Isa::set1(2.06390887954e-2f));
  p = Isa::fma(p, z, Isa::set1(-5.37397155531e-2f));
  p = Isa::fma(p, z, Isa::set1(1.33314422036e-1f));
  p = Isa::fma(p, z, Isa::set1(-3.33332819422e-1f));
  const F small = Isa::fma(Isa::mul(p, z), x, x);
  // With e = exp(-2|x|) <= 1, tanh|x| = (1 - e) / (1 + e).
  const F e = Isa::exp2(Isa::mul(a, Isa::set1(-2.0f * kLog2e)), Exp2Long<Isa>{});
  const F one = Isa::set1(1.0f);
  const F large = Isa::div(Isa::sub(one, e), Isa::add(one, e));
  const F signed_large = Isa::where_less(x, Isa::zero(), Isa::sub(Isa::zero(), large), large);
  return Isa::where_less(a, Isa::set1(0.625f), small, signed_large);
}

// The maximum is only raised, and what was summed only rescaled, when it grows by more than this (log2
// units): weights stay below 2^8, where f32 sums and bf16 weights lose nothing.
constexpr float kRaise = 8.0f;

struct RowState {
  float* o;  // [D']
  float* m;
  float* l;  // [16]
};

// What a row's scores pass through before the mask, in the order of pagemill.h.
struct ScoreTransform {
  float scale;           // of the raw product
  float soft_cap;        // 0 = none
  float slope;           // of ALiBi, 0 = none
  float first_distance;  // position - key of column 0
  bool needed;           // false: weights are exp2(scale * log2(e) * s - m), with no pass of their own
};

template <class Isa>
PM_NOINLINE void transform_scores(float* s, int columns, const ScoreTransform& t) {
  for (int c = 0; c < columns; c += Isa::kLanes) {
    auto x = Isa::mul(Isa::load(s + c), Isa::set1(t.scale));
    if (t.soft_cap != 0) x = Isa::mul(Isa::set1(t.soft_cap), tanh<Isa>(Isa::div(x, Isa::set1(t.soft_cap))));
    if (t.slope != 0) {
      const auto distance = Isa::sub(Isa::set1(t.first_distance - static_cast<float>(c)), Isa::iota());
      x = Isa::fma(Isa::set1(-t.slope), Isa::abs(distance), x);
    }
    Isa::store(s + c, Isa::mul(x, Isa::set1(kLog2e)));
  }
}

// Columns outside [begin, end) become -inf.
template <class Isa>
PM_INLINE void mask_scores(float* s, int columns, int begin, int end) {
  for (int c = 0; c < columns; c += Isa::kLanes) {
    if (c >= begin && c + Isa::kLanes <= end) continue;
    const int first = begin <= c ? 0 : begin - c < Isa::kLanes ? begin - c : Isa::kLanes;
    const int last = end <= c ? 0 : end - c < Isa::kLanes ? end - c : Isa::kLanes;
    Isa::store(s + c, Isa::keep(Isa::load(s + c), first < last ? first : last, last));
  }
}

// s: [columns] raw scores of a row, columns a multiple of 16; visible columns [begin, end). Leaves the
// weights in `weights` (bf16 if kBf16Weights, else f32, where weights may be s) and brings the row's state up
// to date but for O += weights V.
template <class Isa, bool kBf16Weights, class Weight>
PM_INLINE void softmax_row(float* s, int columns, int begin, int end, const ScoreTransform& transform,
                           int dim, const RowState& state, Weight* weights) {
  using F = typename Isa::F;
  float scale = transform.scale * kLog2e;
  if (transform.needed) {
    transform_scores<Isa>(s, columns, transform);
    scale = 1.0f;
  }
  if (begin > 0 || end < columns) mask_scores<Isa>(s, columns, begin, end);

  F top = Isa::load(s);
  for (int c = Isa::kLanes; c < columns; c += Isa::kLanes) top = Isa::max(Isa::load(s + c), top);
  if (!Isa::none_above(top, (*state.m + kRaise) / scale)) {  // a NaN is raised too, and stays
    const float highest = Isa::reduce_max(top) * scale;
    const F keep = Isa::set1(std::exp2(*state.m - highest));
    *state.m = highest;
    for (int i = 0; i < kGroupKeys; i += Isa::kLanes)
      Isa::store(state.l + i, Isa::mul(Isa::load(state.l + i), keep));
    for (int d = 0; d < dim; d += Isa::kLanes)
      Isa::store(state.o + d, Isa::mul(Isa::load(state.o + d), keep));
  }
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const F minus_m = Isa::set1(*state.m == kNone ? 0.0f : -*state.m), factor = Isa::set1(scale);
  constexpr int kVectors = kGroupKeys / Isa::kLanes;
  F l[kVectors];
  PM_UNROLL for (int i = 0; i < kVectors; ++i) l[i] = Isa::load(state.l + i * Isa::kLanes);
  for (int c = 0; c < columns; c += kGroupKeys) {
    PM_UNROLL for (int i = 0; i < kVectors; ++i) {
      const int at = c + i * Isa::kLanes;
      const F x = Isa::fma(Isa::load(s + at), factor, minus_m);
      F e;
      if constexpr (kBf16Weights) {
        e = Isa::exp2(x, Exp2Short<Isa>{});
        Isa::store_weights(weights + at, e);
      } else {
        e = Isa::exp2(x, Exp2Long<Isa>{});
        Isa::store(weights + at, e);
      }
      l[i] = Isa::add(l[i], e);
    }
  }
  PM_UNROLL for (int i = 0; i < kVectors; ++i) Isa::store(state.l + i * Isa::kLanes, l[i]);
}

}  // namespace pagemill
