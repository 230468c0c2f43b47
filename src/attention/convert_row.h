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
  if constexpr (is_f8(kDtype)) Isa::template store_f8<kDtype>(reinterpret_cast<uint8_t*>(p) + i, x, lanes);
}

template <class F>
PM_INLINE void with_f8(pm_dtype dtype, F f) {
  if (dtype == PM_F8E4M3) {
    f(std::integral_constant<pm_dtype, PM_F8E4M3>{});
  } else {
    f(std::integral_constant<pm_dtype, PM_F8E5M2>{});
  }
}
template <class F>
PM_INLINE void with_wide(pm_dtype dtype, F f) {
  if (dtype == PM_F32) {
    f(std::integral_constant<pm_dtype, PM_F32>{});
  } else if (dtype == PM_BF16) {
    f(std::integral_constant<pm_dtype, PM_BF16>{});
  } else {
    f(std::integral_constant<pm_dtype, PM_F16>{});
  }
}
template <class F>
PM_INLINE void with_dtype(pm_dtype dtype, F f) {
  if (is_f8(dtype)) {
    with_f8(dtype, f);
  } else {
    with_wide(dtype, f);
  }
}

enum class Scaling { kMultiply, kDivide };

// dst[i] = src[i] times or divided by scale, rounded, for n elements. src is not fp8.
template <class Isa, Scaling kScaling = Scaling::kMultiply>
PM_NOINLINE void convert_row(const std::byte* src, pm_dtype src_dtype, std::byte* dst, pm_dtype dst_dtype,
                             int n, float scale) {
  if (src_dtype == dst_dtype && scale == 1.0f) {
    std::memcpy(dst, src, static_cast<size_t>(n * dtype_bytes(src_dtype)));
    return;
  }
  with_wide(src_dtype, [&](auto from) PM_INLINE_LAMBDA {
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
  if (element == 1) {
    for (int t = 0; t < kGroupKeys; t += 4) {
      Isa::interleave_bytes(rows + t, head_dim, reinterpret_cast<uint32_t*>(dst) + t / 4 * head_dim);
      if (ahead) ahead->step<4>();
    }
    return;
  }
  for (int t = 0; t < kGroupKeys; t += 2) {
    Isa::interleave(rows[t], rows[t + 1], head_dim, reinterpret_cast<uint32_t*>(dst) + t / 2 * head_dim);
    if (ahead) ahead->step<4>();
  }
}

// Calls f(widen) with what widens words of fp8: widen(words, low, high, lanes) as Isa::widen_f8.
template <class Isa, class F>
PM_INLINE void with_widening(pm_dtype dtype, bool vbmi, F f) {
  if constexpr (Isa::kLooksUp) {
    if (vbmi) {
      const auto lookup = Isa::lookup(dtype);
      f([&](const std::byte* words, std::byte* low, std::byte* high, int lanes)
            PM_INLINE_LAMBDA { Isa::widen_f8(words, low, high, lanes, lookup); });
      return;
    }
  }
  with_f8(dtype, [&](auto from) PM_INLINE_LAMBDA {
    f([](const std::byte* words, std::byte* low, std::byte* high, int lanes)
          PM_INLINE_LAMBDA { Isa::template widen_f8<decltype(from)::value>(words, low, high, lanes); });
  });
}

// A group of fp8, K [D/4][16][4] or V [4][D][4], to bf16, K [D/2][16][2] or V [8][D][2].
template <class Isa>
PM_NOINLINE void widen_keys(const std::byte* group, pm_dtype dtype, bool vbmi, int head_dim, std::byte* dst,
                            Ahead& ahead) {
  constexpr int kBytes = Isa::kLanes * 4;
  with_widening<Isa>(dtype, vbmi, [&](auto widen) PM_INLINE_LAMBDA {
    for (int line = 0; line < head_dim / 4; ++line, group += 64, dst += 128) {
      ahead.step<1>();
      PM_UNROLL for (int at = 0; at < 64; at += kBytes)
          widen(group + at, dst + at, dst + 64 + at, Isa::kLanes);
    }
  });
}

template <class Isa>
PM_NOINLINE void widen_values(const std::byte* group, pm_dtype dtype, bool vbmi, int head_dim, std::byte* dst,
                              Ahead& ahead) {
  const int64_t row = int64_t{head_dim} * 4;
  with_widening<Isa>(dtype, vbmi, [&](auto widen) PM_INLINE_LAMBDA {
    for (int t = 0; t < kGroupKeys; t += 4, group += row, dst += 2 * row) {
      for (int d = 0; d < head_dim; d += Isa::kLanes) {
        if (d % 16 == 0) ahead.step<1>();
        const int lanes = head_dim - d < Isa::kLanes ? head_dim - d : Isa::kLanes;
        widen(group + d * 4, dst + d * 4, dst + row + d * 4, lanes);
      }
    }
  });
}

}  // namespace pagemill
