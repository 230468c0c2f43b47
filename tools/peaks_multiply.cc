// Multiply-add kernels: independent sums in registers, as many as cover the latency.
#include "peaks.h"
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#endif

namespace pagemill {
namespace {

typedef float F4 __attribute__((vector_size(16)));

// Makes the compiler forget what it knows of x, which stays in its register.
#ifdef __x86_64__
#define PM_OPAQUE(x) asm volatile("" : "+x"(x))
#else
#define PM_OPAQUE(x) asm volatile("" : "+w"(x))
#endif

// The baseline of the architecture: a multiplication and an addition, fused where it has that.
float baseline(int64_t iterations) {
  constexpr int kSums = 8;
  F4 sums[kSums] = {}, a = {1, 1, 1, 1}, b = {1, 1, 1, 1};
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) {
      PM_OPAQUE(a);
      sums[j] += a * b;
    }
  }
  for (F4 sum : sums) a += sum;
  return a[0];
}
constexpr MultiplyKernel kBaseline = {"4-wide f32 multiply and add", 8 * 4 * 2, baseline};

#ifdef __x86_64__
constexpr int kSums256 = 12, kSums512 = 24, kSumsTiles = 6;

__attribute__((target("avx2,fma"))) float fma256(int64_t iterations) {
  __m256 sums[kSums256], a = _mm256_set1_ps(1), b = a;
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums256; ++j) sums[j] = _mm256_fmadd_ps(a, b, sums[j]);
  }
  for (auto& sum : sums) a = _mm256_add_ps(a, sum);
  return _mm256_cvtss_f32(a);
}
constexpr MultiplyKernel kFma256 = {"vfmadd231ps ymm", kSums256 * 8 * 2, fma256};

__attribute__((target("avx512f"))) float fma512(int64_t iterations) {
  __m512 sums[kSums512], a = _mm512_set1_ps(1), b = a;
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kSums512; ++j) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
  }
  for (auto& sum : sums) a = _mm512_add_ps(a, sum);
  return _mm512_cvtss_f32(a);
}
constexpr MultiplyKernel kFma512 = {"vfmadd231ps zmm", kSums512 * 16 * 2, fma512};

__attribute__((target("avx512f,avx512bf16"))) float dot512(int64_t iterations) {
  __m512 sums[kSums512], total = _mm512_setzero_ps();
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a;  // pairs of ones
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kSums512; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], a, b);
  }
  for (auto& sum : sums) total = _mm512_add_ps(total, sum);
  return _mm512_cvtss_f32(total);
}
constexpr MultiplyKernel kDot512 = {"vdpbf16ps zmm", kSums512 * 32 * 2, dot512};

// Eight tiles of 16 rows of 64 bytes: six sums, two operands of ones. The library has asked for the tiles.
__attribute__((target("amx-tile,amx-bf16"))) float tiles(int64_t iterations) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  alignas(64) uint16_t ones[16][32];
  for (auto& row : ones) std::ranges::fill(row, uint16_t{0x3f80});
  alignas(64) float sums[kSumsTiles][16][16];
  asm volatile("" : : "r"(ones), "r"(sums) : "memory");  // which the tiles' instructions do not tell
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, sums[4], 64);
  _tile_stored(5, sums[5], 64);
  _tile_release();
  asm volatile("" : : "r"(sums) : "memory");
  float total = 0;
  for (auto& sum : sums) total += sum[0][0];
  return total;
}
constexpr MultiplyKernel kTiles = {"tdpbf16ps", kSumsTiles * 16 * 16 * 32 * 2, tiles};
#endif

}  // namespace

#ifdef __x86_64__
const MultiplyKernel& best_multiply(std::string_view isa, pm_dtype dtype, pm_dtype cache_dtype) {
  if (isa == "avx2") return kFma256;
  const bool f8_cache = cache_dtype == PM_F8E4M3 || cache_dtype == PM_F8E5M2;
  const bool bf16 = dtype == PM_BF16 && (cache_dtype == PM_BF16 || f8_cache);
  if (isa == "avx512") return kFma512;
  if (isa == "avx512bf16") return bf16 ? kDot512 : kFma512;
  if (isa == "amx") return bf16 ? kTiles : kFma512;
  return kBaseline;
}
#else
const MultiplyKernel& best_multiply(std::string_view, pm_dtype, pm_dtype) {
  return kBaseline;
}
#endif

}  // namespace pagemill
