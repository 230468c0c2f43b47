// Online softmax for tile verbs, which multiply 32 keys at a time while the vector units weigh the 32 before.
//
// The running maximum of softmax.h costs a look at every score before the first weight. Here m is the maximum
// of the first 32 keys of which the row sees any, and stays: bf16 weights and f32 sums lose nothing while
// weights are below 2^64. A row that grows beyond is raised by a multiple of 64, which scales what it has by
// an exact power of two, so that bits do not depend on when that is done.
#pragma once

#include "attention/softmax.h"
#include "isa/float16.h"

namespace pagemill {

constexpr float kRaiseStep = 64.0f;  // log2 units

struct AnchoredRow {
  float* m;
  float* l;     // [16]
  float* keep;  // what the row's o is still to be scaled by
};

// The weights of a granule, from scores that are scale times too small. False, and l is as it was, if weights
// are too large or not finite, unless they are `accepted` as they are.
template <class Isa>
PM_INLINE bool weigh_granule(const float* s, float scale, float minus_m, float* l, uint16_t* weights,
                             bool accepted) {
  using F = typename Isa::F;
  const F offset = Isa::set1(minus_m), factor = Isa::set1(scale);
  constexpr int kVectors = kGroupKeys / Isa::kLanes;
  F sums[kVectors];
  bool sound = true;
  PM_UNROLL for (int v = 0; v < kVectors; ++v) {
    const int i = v * Isa::kLanes;
    const F a = Isa::exp2(Isa::fma(Isa::load(s + i), factor, offset), Exp2Short<Isa>{});
    const F b = Isa::exp2(Isa::fma(Isa::load(s + i + kGroupKeys), factor, offset), Exp2Short<Isa>{});
    Isa::store_weights(weights + i, a, weights + i + kGroupKeys, b);
    sums[v] = Isa::add(a, b);
    sound = sound && Isa::none_above(sums[v], 0x1p64f);
  }
  if (!sound && !accepted) return false;
  PM_UNROLL for (int v = 0; v < kVectors; ++v) {
    float* to = l + v * Isa::kLanes;
    Isa::store(to, Isa::add(Isa::load(to), sums[v]));
  }
  return true;
}

// For a row that weigh_granule() refused: raises its m, if that helps. The `before` weights in front of the
// granule's have met no values yet.
template <class Isa>
PM_NOINLINE void raise(const float* s, float scale, const AnchoredRow& row, uint16_t* weights, int before) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  float top = -kInf;
  for (int i = 0; i < kGranuleKeys; ++i) top = s[i] * scale > top ? s[i] * scale : top;
  const float up = std::ceil((top - *row.m) / kRaiseStep) * kRaiseStep;
  if (!(up > 0 && up < kInf)) return;
  const float keep = std::exp2(-up);
  *row.m += up;
  *row.keep *= keep;
  for (int i = 0; i < kGroupKeys; ++i) row.l[i] *= keep;
  for (int i = -before; i < 0; ++i) weights[i] = f32_to_bf16(bf16_to_f32(weights[i]) * keep);
}

// One granule of a row, of which columns [begin, end) are visible, whatever it is.
template <class Isa>
PM_NOINLINE void weigh_any_granule(float* s, int begin, int end, const ScoreTransform& transform,
                                   const AnchoredRow& row, uint16_t* weights, int before) {
  using F = typename Isa::F;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float scale = transform.scale * kLog2e;
  if (transform.needed) {
    transform_scores<Isa>(s, kGranuleKeys, transform);
    scale = 1.0f;
  }
  if (begin > 0 || end < kGranuleKeys) mask_scores<Isa>(s, kGranuleKeys, begin, end);
  if (*row.m == kNone) {
    F top = Isa::load(s);
    for (int i = Isa::kLanes; i < kGranuleKeys; i += Isa::kLanes) top = Isa::max(Isa::load(s + i), top);
    *row.m = Isa::reduce_max(top) * scale;
  }
  const auto minus_m = [&] { return *row.m == kNone ? 0.0f : -*row.m; };
  if (weigh_granule<Isa>(s, scale, minus_m(), row.l, weights, false)) return;
  raise<Isa>(s, scale, row, weights, before);
  weigh_granule<Isa>(s, scale, minus_m(), row.l, weights, true);
}

// The maximum of those of `rows` rows that have none, from granules that they see whole, without a transform.
template <class Isa>
PM_NOINLINE void anchor_plain_granules(const float* s, float scale, int rows, float* m) {
  for (int r = 0; r < rows; ++r, s += kGranuleKeys) {
    auto top = Isa::load(s);
    for (int i = Isa::kLanes; i < kGranuleKeys; i += Isa::kLanes) top = Isa::max(Isa::load(s + i), top);
    const float highest = Isa::reduce_max(top) * scale;
    m[r] = m[r] == -std::numeric_limits<float>::infinity() ? highest : m[r];
  }
}

// Granules of `rows` rows, whole and without a transform, of rows that have a maximum. Returns how many rows
// are done: fewer if the next one is for weigh_any_granule().
template <class Isa>
PM_NOINLINE int weigh_plain_granules(const float* s, int64_t lds, float scale, int rows, const float* m,
                                     float* l, uint16_t* weights, int64_t ldp) {
  for (int r = 0; r < rows; ++r) {
    if (!weigh_granule<Isa>(s + r * lds, scale, -m[r], l + r * kGroupKeys, weights + r * ldp, false)) {
      return r;
    }
  }
  return rows;
}

}  // namespace pagemill
