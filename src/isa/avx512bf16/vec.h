// AVX-512 with AVX512-BF16: vdpbf16ps. Where the CPU has VBMI too (all but Cooper Lake), fp8 is looked up.
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

  // The bytes of a bf16 by the magnitude of an fp8, and what else it takes to widen with them.
  static constexpr bool kLooksUp = true;
  struct Lookup {
    __m512i high[2], low[2], order, sign;
  };
  static PM_INLINE Lookup lookup(pm_dtype dtype) {
    return dtype == PM_F8E4M3 ? lookup<PM_F8E4M3>() : lookup<PM_F8E5M2>();
  }
  template <pm_dtype kDtype>
  static PM_INLINE Lookup lookup() {
    struct Tables {
      alignas(64) uint8_t high[128] = {}, low[128] = {};
      constexpr Tables() {
        for (int x = 0; x < 128; ++x) {
          const uint16_t wide = f8_to_bf16<kDtype>(static_cast<uint8_t>(x));
          high[x] = static_cast<uint8_t>(wide >> 8);
          low[x] = static_cast<uint8_t>(wide & 0xff);
        }
      }
    };
    static constexpr Tables kTables;
    return {{_mm512_load_si512(kTables.high), _mm512_load_si512(kTables.high + 64)},
            {_mm512_load_si512(kTables.low), _mm512_load_si512(kTables.low + 64)},
            by_element_pairs(),
            _mm512_set1_epi8(static_cast<char>(0x80))};
  }
  // Written out, as this unit is also for CPUs without VBMI: those never come here.
  static PM_INLINE __m512i look_up(__m512i index, const __m512i (&table)[2]) {
    __asm__("vpermi2b %2, %1, %0" : "+v"(index) : "v"(table[0]), "v"(table[1]));
    return index;
  }
  // As widen_f8, into registers.
  static PM_INLINE void widen_f8(const std::byte* words, int lanes, const Lookup& t, B& low, B& high) {
    const __m512i x = _mm512_shuffle_epi8(load_words(words, lanes), t.order);
    const __m512i h = _mm512_ternarylogic_epi32(look_up(x, t.high), x, t.sign, kOrAnd), l = look_up(x, t.low);
    low = reinterpret_cast<B>(_mm512_unpacklo_epi8(l, h));
    high = reinterpret_cast<B>(_mm512_unpackhi_epi8(l, h));
  }
  static PM_INLINE void widen_f8(const std::byte* words, std::byte* low, std::byte* high, int lanes,
                                 const Lookup& t) {
    B l, h;
    widen_f8(words, lanes, t, l, h);
    store_words(low, reinterpret_cast<__m512i>(l), lanes);
    store_words(high, reinterpret_cast<__m512i>(h), lanes);
  }
  using Avx512::widen_f8;

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
  // Lanes 4 i + j: the sum of lanes 4 i to 4 i + 3 of x[j].
  static PM_INLINE F add_in_quads(const F (&x)[4]) {
    const F a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const F b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  // Lanes 4 j + i: the sum of lanes i, 4 + i, 8 + i and 12 + i of x[j].
  static PM_INLINE F add_quads(const F (&x)[4]) {
    const F a = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
    const F b = _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
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
  // To two places that lie side by side.
  static PM_INLINE void store_weights(uint16_t* p, F a, uint16_t*, F b) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
};

}  // namespace pagemill
