// Caches of fp8 on every ISA: each byte, each rounding, with few rows of queries and with many.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr pm_dtype kFloat8[] = {PM_F8E4M3, PM_F8E5M2};

class Float8 : public EachIsa {};
PM_INSTANTIATE_EACH_ISA(Float8);

double decoded(pm_dtype dtype, int byte) {
  const auto bits = uint8_t(byte);
  return reference::get(dtype, &bits, 0);
}

// 256 sequences that each read one key.
Spec one_key_each(const char* isa, pm_layout layout, pm_dtype dtype, pm_dtype q, int group) {
  Spec spec;
  spec.isa = isa;
  spec.layout = layout;
  spec.num_heads = group, spec.head_dim = 40;
  spec.dtype = q, spec.out_dtype = PM_F32, spec.cache_dtype = dtype;
  spec.write_cache = false;
  for (int b = 0; b < 256; ++b) spec.seqs.push_back({b, 1, 1, {}, {}});
  return spec;
}

template <class Index>
void fill_bytes(Case& c, void* cache, Index index, int seq, uint8_t byte) {
  const pm_args args = reference::with_strides(c.config, c.args);
  const int page = reference::page_of(c.config, c.batch, seq, 0);
  for (int d = 0; d < c.config.head_dim; ++d)
    static_cast<uint8_t*>(cache)[index(c.config, args, page, 0, 0, d)] = byte;
}

template <class F>
void for_forms(const char* isa, F&& f) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (pm_dtype dtype : kFloat8)
      for (pm_dtype q : {PM_BF16, PM_F32})
        for (int group : {1, 4, 20}) f(one_key_each(isa, layout, dtype, q, group));
}

// Sequence b has V of bytes b: that is its result.
TEST_P(Float8, EveryByteOfAValueIsRead) {
  for_forms(isa, [](const Spec& spec) {
    Case c(spec);
    for (int b = 0; b < 256; ++b) fill_bytes(c, c.args.v_cache, reference::value_index, b, uint8_t(b));
    c.save();
    run(c);
    for (int b = 0; b < 256; ++b)
      for (int h = 0; h < spec.num_heads; ++h)
        for (int d = 0; d < spec.head_dim; ++d) {
          const double want = decoded(spec.cache_dtype, b),
                       got = reference::get(PM_F32, c.out_row(b, 0, h), d);
          if (std::isfinite(want)) {
            ASSERT_NEAR(got, want, 1e-3 * std::fabs(want)) << "byte " << b << "\n" << describe(spec);
            ASSERT_EQ(std::signbit(got), std::signbit(want) && want != 0);
          } else {
            ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want) << "byte " << b << "\n"
                                                                          << describe(spec);
          }
        }
  });
}

// Sequence b has K of bytes b and a query that is 1 in one dim: that is its score, which lse repeats.
TEST_P(Float8, EveryByteOfAKeyIsRead) {
  constexpr float kScale = 4096;  // the smallest numbers are 2^-16
  for_forms(isa, [](Spec spec) {
    spec.scale = kScale;
    Case c(spec);
    const pm_args args = reference::with_strides(c.config, c.args);
    for (int b = 0; b < 256; ++b) {
      fill_bytes(c, c.args.k_cache, reference::key_index, b, uint8_t(b));
      for (int h = 0; h < spec.num_heads; ++h)
        for (int d = 0; d < spec.head_dim; ++d)
          reference::put(spec.dtype, const_cast<void*>(args.q),
                         b * args.q_stride_token + h * args.q_stride_head + d, d == (b + h) % spec.head_dim);
    }
    c.save();
    run(c);
    for (int b = 0; b < 256; ++b)
      for (int h = 0; h < spec.num_heads; ++h) {
        const double want = decoded(spec.cache_dtype, b) * kScale, got = c.lse(b, 0, h);
        if (std::isfinite(want))
          ASSERT_NEAR(got, want, 2e-4 + 1e-5 * std::fabs(want)) << "byte " << b << "\n" << describe(spec);
        else
          ASSERT_TRUE(std::isnan(got)) << "byte " << b << ": 0 times it is NaN\n" << describe(spec);
      }
  });
}

// All numbers of the dtype, what lies half between two, a little to both sides of it, and beyond the largest.
std::vector<double> hard_to_round(pm_dtype dtype) {
  std::vector<double> sizes{1e-30, 0x1p-149, 3e38, kInf, std::numeric_limits<double>::quiet_NaN()};
  for (int byte = 0; byte < 0x7f; ++byte) {
    const double x = decoded(dtype, byte), next = decoded(dtype, byte + 1);
    if (!std::isfinite(x)) continue;
    sizes.push_back(x);
    const double step = std::isfinite(next) ? next - x : x - decoded(dtype, byte - 1), tie = x + step / 2;
    for (double y : {tie, tie * (1 - 0x1p-20), tie * (1 + 0x1p-20), x + step}) sizes.push_back(y);
  }
  std::vector<double> values = sizes;
  for (double size : sizes) values.push_back(-size);
  return values;
}

TEST_P(Float8, StoresRoundToNearestEvenAndSaturate) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (pm_dtype dtype : kFloat8)
      for (int q_len : {5, 37})  // token by token; whole groups too
        for (float scale : {1.0f, 0.25f, 0.7f}) {
          Spec spec;
          spec.isa = isa;
          spec.layout = layout;
          spec.head_dim = 40;
          spec.dtype = spec.out_dtype = PM_F32, spec.cache_dtype = dtype;
          spec.k_scale = scale, spec.v_scale = 2;
          const std::vector<double> values = hard_to_round(dtype);
          const int tokens = int(values.size()) / spec.head_dim + 1;
          for (int b = 0; b * q_len < tokens; ++b) spec.seqs.push_back({b, q_len, q_len + 3, {}, {}});
          Case c(spec);
          for (int64_t i = 0; i < int64_t{c.batch.num_tokens} * spec.head_dim; ++i) {
            const double value = values[size_t(i) % values.size()];
            reference::put(PM_F32, const_cast<void*>(c.args.k_new), i, value * (scale == 0.7f ? 1 : scale));
            reference::put(PM_F32, const_cast<void*>(c.args.v_new), i, value * 2);
          }
          c.save();
          run(c, [](const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes) {
            return pm_store(plan, args, workspace, bytes, nullptr);
          });
          ASSERT_EQ(verify_cache(c), "") << describe(spec);
        }
}

}  // namespace
}  // namespace pagemill
