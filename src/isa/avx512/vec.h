// AVX-512 (F, BW, VL, DQ): 16 lanes. bf16 is widened to f32 in registers.
#pragma once

#include <immintrin.h>

#include <limits>

#include "isa/float8.h"
#include "isa/mma_kind.h"

namespace pagemill {

struct Avx512 {
  using F = __m512;
  using B = __m512;  // no bf16 products
  static constexpr int kLanes = 16;
  static constexpr int kRows = 6, kGroups = 4,
                       kVectors = 4;  // 24 accumulators, 4 operands, 1 broadcast of 32
  static constexpr int kTileRows = 24;

  static PM_INLINE __mmask16 first(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

  static PM_INLINE F zero() { return _mm512_setzero_ps(); }
  static PM_INLINE F set1(float x) { return _mm512_set1_ps(x); }
  static PM_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static PM_INLINE F load(const float* p, int lanes) {
    return lanes == kLanes ? load(p) : _mm512_maskz_loadu_ps(first(lanes), p);
  }
  static PM_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static PM_INLINE void store(float* p, F x, int lanes) { _mm512_mask_storeu_ps(p, first(lanes), x); }
  static PM_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static PM_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static PM_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static PM_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static PM_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static PM_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static PM_INLINE F abs(F x) { return _mm512_abs_ps(x); }
  static PM_INLINE F iota() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static PM_INLINE F where_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  // Lanes outside [begin, end), 0 <= begin <= end <= 16, become -inf.
  static PM_INLINE F keep(F x, int begin, int end) {
    const auto mask = static_cast<__mmask16>(((1u << end) - 1) & ~((1u << begin) - 1));
    return _mm512_mask_blend_ps(mask, set1(-std::numeric_limits<float>::infinity()), x);
  }
  static PM_INLINE float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static PM_INLINE float reduce_add(F x) { return _mm512_reduce_add_ps(x); }

  static PM_INLINE bool none_above(F a, float limit) {  // false if a lane is NaN
    return _mm512_cmp_ps_mask(a, set1(limit), _CMP_NLE_UQ) == 0;
  }

  // 2^x for x < 128; 0 at -inf, NaN for NaN. `p` is the polynomial of the fraction, x - floor(x).
  template <class Polynomial>
  static PM_INLINE F exp2(F x, Polynomial p) {
    return _mm512_scalef_ps(p(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)), x);
  }

  static PM_INLINE __m512i load_words(const std::byte* p, int lanes) {
    return lanes == kLanes ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first(lanes), p);
  }
  static PM_INLINE void store_words(std::byte* p, __m512i x, int lanes) {
    if (lanes == kLanes) {
      _mm512_storeu_si512(p, x);
    } else {
      _mm512_mask_storeu_epi32(p, first(lanes), x);
    }
  }
  // Element kHalf (0 or 1) of each pair.
  template <int kHalf>
  static PM_INLINE F widen_bf16(const std::byte* p, int lanes) {
    const __m512i x = load_words(p, lanes);
    return _mm512_castsi512_ps(kHalf ? _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))
                                     : _mm512_slli_epi32(x, 16));
  }
  template <int kHalf>
  static PM_INLINE F widen_f16(const std::byte* p, int lanes) {
    const __m512i x = load_words(p, lanes);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(kHalf ? _mm512_srli_epi32(x, 16) : x));
  }

  static PM_INLINE F load_bf16(const uint16_t* p, int lanes) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(lanes), p)), 16));
  }
  static PM_INLINE F load_f16(const uint16_t* p, int lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(lanes), p));
  }
  // Round to nearest even, denormals kept, NaN stays NaN.
  static PM_INLINE void store_bf16(uint16_t* p, F x, int lanes) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i y =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_mask_storeu_epi16(p, first(lanes), _mm512_cvtepi32_epi16(y));
  }
  static PM_INLINE void store_f16(uint16_t* p, F x, int lanes) {
    _mm256_mask_storeu_epi16(p, first(lanes), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  // As f32_to_f8.
  template <pm_dtype kDtype>
  static PM_INLINE void store_f8(uint8_t* p, F x, int lanes) {
    using T = Float8<kDtype>;
    constexpr int kExponent = 127 - T::kBias, kDropped = 23 - T::kFraction;
    constexpr int kUnits = (kExponent + 1 + kDropped) << 23;
    const F size = _mm512_min_ps(abs(x), set1(T::kMax)),
            units = _mm512_castsi512_ps(_mm512_set1_epi32(kUnits));
    const __m512i bits = _mm512_castps_si512(size);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, kDropped), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32((1 << (kDropped - 1)) - 1)));
    __m512i y =
        _mm512_sub_epi32(_mm512_srli_epi32(rounded, kDropped), _mm512_set1_epi32(kExponent << T::kFraction));
    const __m512i denormal = _mm512_castps_si512(_mm512_xor_ps(_mm512_add_ps(size, units), units));
    y = _mm512_mask_mov_epi32(y, _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32((kExponent + 1) << 23)),
                              denormal);
    y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(kNan8));
    const __m512i sign =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(x), 24), _mm512_set1_epi32(0x80));
    _mm_mask_storeu_epi8(p, first(lanes), _mm512_cvtepi32_epi8(_mm512_or_si512(y, sign)));
  }

  static constexpr bool kLooksUp = false;
  static constexpr int kOrAnd = 0xf8, kAndXor = 0x6a;  // of three operands: a | (b & c), (a & b) ^ c
  // Of words of four bytes, elements 0 and 1 of four words first: what unpacking takes 8 bytes of.
  static PM_INLINE __m512i by_element_pairs() {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  }
  // Words of four fp8: elements 0 and 1 as a pair of bf16 to `low`, 2 and 3 to `high`. By WidenBytes.
  template <pm_dtype kDtype>
  static PM_INLINE void widen_f8(const std::byte* words, std::byte* low, std::byte* high, int lanes) {
    using T = WidenBytes<kDtype>;
    const auto bytes = [](int x) PM_INLINE_LAMBDA { return _mm512_set1_epi8(static_cast<char>(x)); };
    const auto of_table = [](const auto& table, __m512i index) PM_INLINE_LAMBDA {
      const __m128i x = _mm_load_si128(reinterpret_cast<const __m128i*>(table.of));
      return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(x), index);
    };
    static constexpr auto kLessHigh = T::less_high(), kOtherLow = T::other_low();
    const __m512i x = _mm512_shuffle_epi8(load_words(words, lanes), by_element_pairs());
    const __m512i size = _mm512_and_si512(x, bytes(0x7f)), index = _mm512_add_epi8(size, bytes(T::kToIndex));
    __m512i h = _mm512_and_si512(_mm512_srli_epi16(size, T::kHighShift), bytes(0x7f >> T::kHighShift));
    h = _mm512_sub_epi8(_mm512_add_epi8(h, bytes(T::kHigh)), of_table(kLessHigh, index));
    h = _mm512_mask_mov_epi8(h, _mm512_cmpgt_epi8_mask(size, bytes(Float8<kDtype>::kLargest)), bytes(0x7f));
    h = _mm512_ternarylogic_epi32(h, x, bytes(0x80), kOrAnd);
    const __m512i l = _mm512_ternarylogic_epi32(
        _mm512_slli_epi16(x, T::kLowShift), bytes(0xff << T::kLowShift), of_table(kOtherLow, index), kAndXor);
    store_words(low, _mm512_unpacklo_epi8(l, h), lanes);
    store_words(high, _mm512_unpackhi_epi8(l, h), lanes);
  }

  // dst[d] = bytes d of the four rows, the first lowest, for d < n.
  static PM_INLINE void interleave_bytes(const std::byte* const* rows, int n, uint32_t* dst) {
    // Quarter i of each vector holds what quarter i of the four results is made of.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int d = 0; d < n; d += 64) {
      const int left = n - d < 64 ? n - d : 64;
      __m512i r[4];
      PM_UNROLL for (int i = 0; i < 4; ++i) {
        const __mmask64 there = ~0ull >> (64 - left);
        r[i] = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(there, rows[i] + d));
      }
      const __m512i a = _mm512_unpacklo_epi8(r[0], r[1]), b = _mm512_unpackhi_epi8(r[0], r[1]);
      const __m512i c = _mm512_unpacklo_epi8(r[2], r[3]), e = _mm512_unpackhi_epi8(r[2], r[3]);
      const __m512i words[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c),
                                _mm512_unpacklo_epi16(b, e), _mm512_unpackhi_epi16(b, e)};
      PM_UNROLL for (int i = 0; i < 4; ++i) {
        const int lanes = left - 16 * i < 16 ? left - 16 * i : 16;
        if (lanes > 0) store_words(reinterpret_cast<std::byte*>(dst + d + 16 * i), words[i], lanes);
      }
    }
  }

  // dst[i][t] = rows[t][i] for begin <= i < end, end - begin <= 16: 16 rows of 32-bit words.
  static PM_INLINE void transpose(const std::byte* const* rows, int begin, int end, uint32_t* dst) {
    end - begin == 16 ? transpose<true>(rows, begin, end, dst) : transpose<false>(rows, begin, end, dst);
  }
  template <bool kFull>
  static PM_INLINE void transpose(const std::byte* const* rows, int begin, int end, uint32_t* dst) {
    const int words = kFull ? 16 : end - begin;
    __m512i r[16], t[16];
    PM_UNROLL for (int j = 0; j < 16; ++j) r[j] = load_words(rows[j] + 4 * begin, words);
    PM_UNROLL for (int j = 0; j < 16; j += 2) {
      t[j] = _mm512_unpacklo_epi32(r[j], r[j + 1]);
      t[j + 1] = _mm512_unpackhi_epi32(r[j], r[j + 1]);
    }
    PM_UNROLL for (int j = 0; j < 16; j += 4) {
      r[j] = _mm512_unpacklo_epi64(t[j], t[j + 2]);
      r[j + 1] = _mm512_unpackhi_epi64(t[j], t[j + 2]);
      r[j + 2] = _mm512_unpacklo_epi64(t[j + 1], t[j + 3]);
      r[j + 3] = _mm512_unpackhi_epi64(t[j + 1], t[j + 3]);
    }
    PM_UNROLL for (int j = 0; j < 4; ++j) {
      t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
      t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
      t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
      t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
    }
    PM_UNROLL for (int j = 0; j < 4; ++j) {
      r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
      r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
      r[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
      r[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
    }
    PM_UNROLL for (int j = 0; j < 16; ++j) {
      if (kFull || j < words) _mm512_storeu_si512(dst + (begin + j) * 16, r[j]);
    }
  }

  // Of elements 0 to 15 of two vectors.
  static PM_INLINE __m512i interleaving() {
    alignas(64) static constexpr uint16_t kIndex[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                        37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                        11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    return _mm512_load_si512(kIndex);
  }
  // dst[d] = low[d] | high[d] << 16 for d < n.
  static PM_INLINE void interleave(const std::byte* low, const std::byte* high, int n, uint32_t* dst) {
    const __m512i first_half = interleaving();
    const __m512i second_half = _mm512_add_epi16(first_half, _mm512_set1_epi16(16));
    int d = 0;
    for (; d + 32 <= n; d += 32) {
      const __m512i a = _mm512_loadu_si512(low + 2 * d), b = _mm512_loadu_si512(high + 2 * d);
      _mm512_storeu_si512(dst + d, _mm512_permutex2var_epi16(a, first_half, b));
      _mm512_storeu_si512(dst + d + 16, _mm512_permutex2var_epi16(a, second_half, b));
    }
    for (; d < n; d += 16) {
      const __mmask16 lanes = first(n - d < 16 ? n - d : 16);
      const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, low + 2 * d));
      const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, high + 2 * d));
      _mm512_mask_storeu_epi32(dst + d, lanes, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
  }
};

}  // namespace pagemill
