// AVX2 with FMA and F16C: 8 lanes. bf16 is widened to f32 in registers.
#pragma once

#include <immintrin.h>

#include <limits>

#include "isa/float8.h"
#include "isa/mma_kind.h"

namespace pagemill {

struct Avx2 {
  using F = __m256;
  using B = __m256;  // no bf16 products
  static constexpr int kLanes = 8;
  static constexpr int kRows = 6, kGroups = 1,
                       kVectors = 2;  // 12 accumulators, 2 operands, 1 broadcast of 16
  static constexpr int kTileRows = 24;

  static PM_INLINE F zero() { return _mm256_setzero_ps(); }
  static PM_INLINE F set1(float x) { return _mm256_set1_ps(x); }
  static PM_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static PM_INLINE F load(const float* p, int /*lanes: D is a multiple of 8*/) { return _mm256_loadu_ps(p); }
  static PM_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static PM_INLINE void store(float* p, F x, int) { _mm256_storeu_ps(p, x); }
  static PM_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static PM_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static PM_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static PM_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static PM_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static PM_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }  // b where either is NaN
  static PM_INLINE F abs(F x) { return _mm256_andnot_ps(set1(-0.0f), x); }
  static PM_INLINE F iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  static PM_INLINE F where_less(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  // Lanes outside [begin, end) become -inf.
  static PM_INLINE F keep(F x, int begin, int end) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane),
                                               _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
    return _mm256_blendv_ps(set1(-std::numeric_limits<float>::infinity()), x, _mm256_castsi256_ps(inside));
  }
  static PM_INLINE float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static PM_INLINE float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  static PM_INLINE bool none_above(F a, float limit) {  // false if a lane is NaN
    return _mm256_movemask_ps(_mm256_cmp_ps(a, set1(limit), _CMP_NLE_UQ)) == 0;
  }

  // 2^x for x < 128; 0 below -126, NaN for NaN. `p` is the polynomial of the fraction, x - floor(x).
  template <class Polynomial>
  static PM_INLINE F exp2(F x, Polynomial p) {
    const F low = set1(-126.0f), y = _mm256_max_ps(low, x);
    const F whole = _mm256_floor_ps(y);
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    const F result =
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p(_mm256_sub_ps(y, whole))), power));
    const F kept = _mm256_and_ps(result, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
    return _mm256_blendv_ps(kept, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

  static PM_INLINE __m128i low_halves(__m256i x) {  // the low 16 bits of each lane
    const __m256i y =
        _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)), _mm256_setzero_si256());
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(y, 0x08));
  }
  // Element kHalf (0 or 1) of each pair. The mask comes from memory each time: in a register, which the
  // products need, it drives four of the sums into memory (0.62 of the FMA peak in prefill), and GCC would
  // keep it there. Two shifts instead take the products' ports (llvm-mca, Sapphire Rapids: 0.80 of the peak).
  template <int kHalf>
  static PM_INLINE F widen_bf16(const std::byte* p, int) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (kHalf == 0) return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    alignas(32) static constexpr uint32_t kOdd[8] = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000,
                                                     0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
    __m256i odd;
    __asm__("vpand %2, %1, %0" : "=x"(odd) : "x"(x), "m"(kOdd));
    return _mm256_castsi256_ps(odd);
  }
  template <int kHalf>
  static PM_INLINE F widen_f16(const std::byte* p, int) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_cvtph_ps(low_halves(kHalf ? _mm256_srli_epi32(x, 16) : x));
  }

  static PM_INLINE F load_bf16(const uint16_t* p, int) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static PM_INLINE F load_f16(const uint16_t* p, int) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Round to nearest even, denormals kept, NaN stays NaN.
  static PM_INLINE void store_bf16(uint16_t* p, F x, int) {
    const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low_halves(_mm256_blendv_epi8(rounded, quiet, nan)));
  }
  static PM_INLINE void store_f16(uint16_t* p, F x, int) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }

  // As f32_to_f8.
  template <pm_dtype kDtype>
  static PM_INLINE void store_f8(uint8_t* p, F x, int) {
    using T = Float8<kDtype>;
    constexpr int kExponent = 127 - T::kBias, kDropped = 23 - T::kFraction;
    constexpr int kUnits = (kExponent + 1 + kDropped) << 23;
    const F size = _mm256_min_ps(abs(x), set1(T::kMax)),
            units = _mm256_castsi256_ps(_mm256_set1_epi32(kUnits));
    const __m256i bits = _mm256_castps_si256(size);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, kDropped), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32((1 << (kDropped - 1)) - 1)));
    const __m256i normal =
        _mm256_sub_epi32(_mm256_srli_epi32(rounded, kDropped), _mm256_set1_epi32(kExponent << T::kFraction));
    const __m256i denormal = _mm256_castps_si256(_mm256_xor_ps(_mm256_add_ps(size, units), units));
    const __m256i is_normal = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(((kExponent + 1) << 23) - 1));
    __m256i y = _mm256_blendv_epi8(denormal, normal, is_normal);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    y = _mm256_blendv_epi8(y, _mm256_set1_epi32(kNan8), nan);
    const __m256i sign =
        _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 24), _mm256_set1_epi32(0x80));
    const __m128i halves = low_halves(_mm256_or_si256(y, sign));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
  }

  static constexpr bool kLooksUp = false;
  // Words of four fp8: elements 0 and 1 as a pair of bf16 to `low`, 2 and 3 to `high`. By WidenBytes.
  template <pm_dtype kDtype>
  static PM_INLINE void widen_f8(const std::byte* words, std::byte* low, std::byte* high, int) {
    using T = WidenBytes<kDtype>;
    const auto bytes = [](int x) PM_INLINE_LAMBDA { return _mm256_set1_epi8(static_cast<char>(x)); };
    const auto of_table = [](const auto& table, __m256i index) PM_INLINE_LAMBDA {
      const __m128i x = _mm_load_si128(reinterpret_cast<const __m128i*>(table.of));
      return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(x), index);
    };
    static constexpr auto kLessHigh = T::less_high(), kOtherLow = T::other_low();
    // Unpacked 8 bytes at a time of each half: elements 0 and 1 of four words come first.
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i x = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), order);
    const __m256i size = _mm256_and_si256(x, bytes(0x7f)), index = _mm256_add_epi8(size, bytes(T::kToIndex));
    __m256i h = _mm256_and_si256(_mm256_srli_epi16(size, T::kHighShift), bytes(0x7f >> T::kHighShift));
    h = _mm256_sub_epi8(_mm256_add_epi8(h, bytes(T::kHigh)), of_table(kLessHigh, index));
    const __m256i not_finite = _mm256_cmpgt_epi8(size, bytes(Float8<kDtype>::kLargest));
    h = _mm256_or_si256(_mm256_or_si256(h, _mm256_and_si256(x, bytes(0x80))),
                        _mm256_and_si256(not_finite, bytes(0x7f)));
    __m256i l = _mm256_and_si256(_mm256_slli_epi16(x, T::kLowShift), bytes(0xff << T::kLowShift));
    l = _mm256_xor_si256(l, of_table(kOtherLow, index));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm256_unpacklo_epi8(l, h));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm256_unpackhi_epi8(l, h));
  }

  // dst[d] = bytes d of the four rows, the first lowest, for d < n, n a multiple of 8.
  static PM_INLINE void interleave_bytes(const std::byte* const* rows, int n, uint32_t* dst) {
    for (int d = 0; d < n; d += 8) {
      const auto row = [&](int i) PM_INLINE_LAMBDA {
        return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[i] + d));
      };
      const __m128i a = _mm_unpacklo_epi8(row(0), row(1)), b = _mm_unpacklo_epi8(row(2), row(3));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + d), _mm_unpacklo_epi16(a, b));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + d + 4), _mm_unpackhi_epi16(a, b));
    }
  }

  // dst[d] = low[d] | high[d] << 16 for d < n, n a multiple of 8.
  static PM_INLINE void interleave(const std::byte* low, const std::byte* high, int n, uint32_t* dst) {
    for (int d = 0; d < n; d += 8) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low + 2 * d));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high + 2 * d));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + d), _mm_unpacklo_epi16(a, b));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + d + 4), _mm_unpackhi_epi16(a, b));
    }
  }

  // dst[i][t] = rows[t][i] for begin <= i < end: 16 rows of 32-bit words.
  static PM_INLINE void transpose(const std::byte* const* rows, int begin, int end, uint32_t* dst) {
    const int whole = begin + (end - begin) / 4 * 4;
    for (int i = whole; i < end; ++i) {
      for (int t = 0; t < 16; ++t) __builtin_memcpy(dst + i * 16 + t, rows[t] + 4 * i, 4);
    }
    for (int i = begin; i < whole; i += 4) {
      PM_UNROLL for (int half = 0; half < 16; half += 8) {
        __m256 r[4];  // r[j]: words of row half + j, then of row half + j + 4
        PM_UNROLL for (int j = 0; j < 4; ++j) {
          const auto low = _mm_loadu_ps(reinterpret_cast<const float*>(rows[half + j] + 4 * i));
          const auto high = _mm_loadu_ps(reinterpret_cast<const float*>(rows[half + j + 4] + 4 * i));
          r[j] = _mm256_set_m128(high, low);
        }
        const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
        const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
        float* out = reinterpret_cast<float*>(dst + i * 16 + half);
        _mm256_storeu_ps(out, _mm256_shuffle_ps(a, c, 0x44));
        _mm256_storeu_ps(out + 16, _mm256_shuffle_ps(a, c, 0xee));
        _mm256_storeu_ps(out + 32, _mm256_shuffle_ps(b, d, 0x44));
        _mm256_storeu_ps(out + 48, _mm256_shuffle_ps(b, d, 0xee));
      }
    }
  }
};

}  // namespace pagemill
