// Rows of elements between dtypes, and into the group layouts of PM_TILES.
#pragma once

#include <cstring>

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

template <class Isa, pm_dtype kDtype>
PM_INLINE typename Isa::F load_row(const std::byte* p, int i, int lanes) {
  if constexpr (kDtype == PM_F32) return Isa::load(reinterpret_cast<const float*>(p) + i, lanes);
  if constexpr (kDtype == PM_BF16) return Isa::load_bf16(reinterpret_cast<const uint16_t*>(p) + i, lanes);
  if constexpr (kDtype == PM_F16) return Isa::load_f16(reinterpret_cast<const uint16_t*>(p) + i, lanes);
}

template <class Isa, pm_dtype kDtype>
PM_INLINE void store_row(std::byte* p, int i, typename Isa::F x, int lanes) {
  if constexpr (kDtype == PM_F32) Isa::store(reinterpret_cast<float*>(p) + i, x, lanes);
  if constexpr (kDtype == PM_BF16) Isa::store_bf16(reinterpret_cast<uint16_t*>(p) + i, x, lanes);
  if constexpr (kDtype == PM_F16) Isa::store_f16(reinterpret_cast<uint16_t*>(p) + i, x, lanes);
}

template <class F>
PM_INLINE void with_dtype(pm_dtype dtype, F f) {
  switch (dtype) {
    case PM_F32: return f(std::integral_constant<pm_dtype, PM_F32>{});
    case PM_BF16: return f(std::integral_constant<pm_dtype, PM_BF16>{});
    case PM_F16: return f(std::integral_constant<pm_dtype, PM_F16>{});
  }
}

enum class Scaling { kMultiply, kDivide };

// dst[i] = src[i] times or divided by scale, rounded, for n elements.
template <class Isa, Scaling kScaling = Scaling::kMultiply>
PM_NOINLINE void convert_row(const std::byte* src, pm_dtype src_dtype, std::byte* dst, pm_dtype dst_dtype,
                             int n, float scale) {
  if (src_dtype == dst_dtype && scale == 1.0f) {
    std::memcpy(dst, src, static_cast<size_t>(n * dtype_bytes(src_dtype)));
    return;
  }
  with_dtype(src_dtype, [&](auto from) PM_INLINE_LAMBDA {
    with_dtype(dst_dtype, [&](auto to) PM_INLINE_LAMBDA {
      for (int i = 0; i < n; i += Isa::kLanes) {
        const int lanes = n - i < Isa::kLanes ? n - i : Isa::kLanes;
        const auto x = load_row<Isa, decltype(from)::value>(src, i, lanes), factor = Isa::set1(scale);
        store_row<Isa, decltype(to)::value>(
            dst, i, kScaling == Scaling::kDivide ? Isa::div(x, factor) : Isa::mul(x, factor), lanes);
      }
    });
  });
}

// Sixteen rows of D elements into one group: K [D/r][16][r], V [16/r][D][r]. Packing for decode takes longer
// than the products, so it fetches ahead too: half of the lines that it reads, the products the other half.
template <class Isa>
PM_INLINE void pack_keys(const std::byte* const* rows, int head_dim, int64_t element, std::byte* dst,
                         Ahead* ahead) {
  const int words = head_dim * static_cast<int>(element) / 4;
  for (int i = 0; i < words; i += 16) {
    Isa::transpose(rows, i, words - i < 16 ? words : i + 16, reinterpret_cast<uint32_t*>(dst));
    if (ahead) ahead->step<8>();
  }
}

template <class Isa>
PM_NOINLINE void pack_values(const std::byte* const* rows, int head_dim, int64_t element, std::byte* dst,
                             Ahead* ahead) {
  if (element == 4) {
    for (int t = 0; t < kGroupKeys; ++t)
      std::memcpy(dst + t * head_dim * 4, rows[t], static_cast<size_t>(head_dim) * 4);
    return;
  }
  for (int t = 0; t < kGroupKeys; t += 2) {
    Isa::interleave(rows[t], rows[t + 1], head_dim, reinterpret_cast<uint32_t*>(dst) + t / 2 * head_dim);
    if (ahead) ahead->step<4>();
  }
}

}  // namespace pagemill
