// (O, m, l) states: O and l are sums of exp2(score - m) v and exp2(score - m); m = -inf is the empty state.
#pragma once

#include <cmath>
#include <limits>

#include "isa/mma_kind.h"

namespace pagemill {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

// state <- state + part, as in FlashAttention's split-KV merge. An empty side leaves the other's bits alone;
// one whose l is NaN (a NaN among scores of -inf) is not empty.
template <class Isa>
PM_NOINLINE void fold(int dim, float* o, float& m, float& l, const float* part_o, float part_m,
                      float part_l) {
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  if (part_m == kEmpty && part_l == 0.0f) return;
  const float top = m > part_m ? m : part_m;
  const float keep = m == kEmpty ? 0.0f : std::exp2(m - top), add = std::exp2(part_m - top);
  for (int d = 0; d < dim; ++d) o[d] = o[d] * keep + part_o[d] * add;
  l = l * keep + part_l * add;
  m = top;
}

}  // namespace pagemill
