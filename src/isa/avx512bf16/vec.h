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

  // Weights are in [0, 256]: flushing bf16 denormals is harmless.
  static PM_INLINE void store_weights(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
};

}  // namespace pagemill
