// AVX-512 with AVX512-BF16: vdpbf16ps.
#pragma once

#include "isa/avx512/vec.h"

namespace pagemill {

struct Avx512Bf16 : Avx512 {
  using B = __m512bh;

  static PM_INLINE B load_pairs(const std::byte* p, int lanes) {
    return reinterpret_cast<B>(load_words(p, lanes));
  }
  static PM_INLINE B broadcast_pair(const std::byte* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return reinterpret_cast<B>(_mm512_set1_epi32(pair));
  }
  static PM_INLINE F dot(F acc, B a, B b) { return _mm512_dpbf16_ps(acc, a, b); }

  // quads[j] = word j of each of 16 rows. Loads put four rows' words side by side: half the shuffles.
  static PM_INLINE void transpose_quad(const std::byte* const* rows, int64_t offset, B (&quads)[4]) {
    __m512i r[4], t[4];
    PM_UNROLL for (int j = 0; j < 4; ++j) {
      const auto words = [&](int row) PM_INLINE_LAMBDA {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset));
      };
      r[j] = _mm512_castsi128_si512(words(j));
      r[j] = _mm512_mask_broadcast_i32x4(r[j], 0x00f0, words(j + 4));
      r[j] = _mm512_mask_broadcast_i32x4(r[j], 0x0f00, words(j + 8));
      r[j] = _mm512_mask_broadcast_i32x4(r[j], 0xf000, words(j + 12));
    }
    t[0] = _mm512_unpacklo_epi32(r[0], r[1]);
    t[1] = _mm512_unpackhi_epi32(r[0], r[1]);
    t[2] = _mm512_unpacklo_epi32(r[2], r[3]);
    t[3] = _mm512_unpackhi_epi32(r[2], r[3]);
    quads[0] = reinterpret_cast<B>(_mm512_unpacklo_epi64(t[0], t[2]));
    quads[1] = reinterpret_cast<B>(_mm512_unpackhi_epi64(t[0], t[2]));
    quads[2] = reinterpret_cast<B>(_mm512_unpacklo_epi64(t[1], t[3]));
    quads[3] = reinterpret_cast<B>(_mm512_unpackhi_epi64(t[1], t[3]));
  }
  // Pairs (low[d], high[d]) of 32 dims, in ascending order.
  static PM_INLINE void load_interleaved(const std::byte* low, const std::byte* high, B& first_half,
                                         B& second_half) {
    const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high), index = interleaving();
    first_half = reinterpret_cast<B>(_mm512_permutex2var_epi16(a, index, b));
    second_half =
        reinterpret_cast<B>(_mm512_permutex2var_epi16(a, _mm512_add_epi16(index, _mm512_set1_epi16(16)), b));
  }

  // Weights are in [0, 256]: flushing bf16 denormals is harmless.
  static PM_INLINE void store_weights(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
};

}  // namespace pagemill
