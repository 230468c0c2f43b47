// The reference itself: hand-computed cases, a second formula, rounding.
#include "reference.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cases.h"

namespace pagemill {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

uint8_t bits8(pm_dtype dtype, double value) {
  uint8_t bits = 0;
  reference::put(dtype, &bits, 0, value);
  return bits;
}

uint16_t bits16(pm_dtype dtype, double value) {
  uint16_t bits = 0;
  reference::put(dtype, &bits, 0, value);
  return bits;
}

TEST(Rounding, Bf16) {
  EXPECT_EQ(bits16(PM_BF16, 1.0), 0x3f80);
  EXPECT_EQ(bits16(PM_BF16, 1 + 0x1p-8), 0x3f80);  // a tie goes to even
  EXPECT_EQ(bits16(PM_BF16, 1 + 0x3p-8), 0x3f82);
  EXPECT_EQ(bits16(PM_BF16, 1 + 0x1p-8 + 0x1p-40), 0x3f81);  // where rounding to f32 first would give the tie
  EXPECT_EQ(bits16(PM_BF16, 2 - 0x1p-9), 0x4000);            // carries into the exponent
  EXPECT_EQ(bits16(PM_BF16, -0.0), 0x8000);
  EXPECT_EQ(bits16(PM_BF16, 0x1p-133), 0x0001);  // smallest denormal
  EXPECT_EQ(bits16(PM_BF16, 0x1p-134), 0x0000);
  EXPECT_EQ(bits16(PM_BF16, 0x3p-135), 0x0001);
  EXPECT_EQ(bits16(PM_BF16, 0x1.fep127), 0x7f7f);  // largest
  EXPECT_EQ(bits16(PM_BF16, 0x1.ffp127), 0x7f80);
  EXPECT_EQ(bits16(PM_BF16, -kInf), 0xff80);
}

TEST(Rounding, F16) {
  EXPECT_EQ(bits16(PM_F16, 1.0), 0x3c00);
  EXPECT_EQ(bits16(PM_F16, 1 + 0x1p-11), 0x3c00);
  EXPECT_EQ(bits16(PM_F16, 1 + 0x3p-11), 0x3c02);
  EXPECT_EQ(bits16(PM_F16, 0x1p-24), 0x0001);
  EXPECT_EQ(bits16(PM_F16, 0x1p-25), 0x0000);
  EXPECT_EQ(bits16(PM_F16, 0x1.002p-25), 0x0001);
  EXPECT_EQ(bits16(PM_F16, 0x1p-14 - 0x1p-26), 0x0400);  // a denormal rounds up to a normal number
  EXPECT_EQ(bits16(PM_F16, 65504), 0x7bff);
  EXPECT_EQ(bits16(PM_F16, 65519.99), 0x7bff);
  EXPECT_EQ(bits16(PM_F16, -65520), 0xfc00);
}

TEST(Rounding, F8E4M3) {
  EXPECT_EQ(bits8(PM_F8E4M3, 1.0), 0x38);
  EXPECT_EQ(bits8(PM_F8E4M3, 1 + 0x1p-4), 0x38);  // a tie goes to even
  EXPECT_EQ(bits8(PM_F8E4M3, 1 + 0x3p-4), 0x3a);
  EXPECT_EQ(bits8(PM_F8E4M3, 1 + 0x1p-4 + 0x1p-40), 0x39);
  EXPECT_EQ(bits8(PM_F8E4M3, 2 - 0x1p-5), 0x40);  // carries into the exponent
  EXPECT_EQ(bits8(PM_F8E4M3, -0.0), 0x80);
  EXPECT_EQ(bits8(PM_F8E4M3, 0x1p-9), 0x01);  // smallest denormal
  EXPECT_EQ(bits8(PM_F8E4M3, 0x1p-10), 0x00);
  EXPECT_EQ(bits8(PM_F8E4M3, 0x3p-10), 0x02);
  EXPECT_EQ(bits8(PM_F8E4M3, 0x1p-6 - 0x1p-11), 0x08);  // a denormal rounds up to a normal number
  EXPECT_EQ(bits8(PM_F8E4M3, 448), 0x7e);               // largest
  for (double beyond : {449.0, 480.0, 1e9, kInf}) EXPECT_EQ(bits8(PM_F8E4M3, -beyond), 0xfe);
  EXPECT_EQ(bits8(PM_F8E4M3, std::nan("")), 0x7f);
}

TEST(Rounding, F8E5M2) {
  EXPECT_EQ(bits8(PM_F8E5M2, 1.0), 0x3c);
  EXPECT_EQ(bits8(PM_F8E5M2, 1 + 0x1p-3), 0x3c);
  EXPECT_EQ(bits8(PM_F8E5M2, 1 + 0x3p-3), 0x3e);
  EXPECT_EQ(bits8(PM_F8E5M2, 0x1p-16), 0x01);
  EXPECT_EQ(bits8(PM_F8E5M2, 0x1p-17), 0x00);
  EXPECT_EQ(bits8(PM_F8E5M2, 57344), 0x7b);
  for (double beyond : {57345.0, 65536.0, 1e9, kInf}) EXPECT_EQ(bits8(PM_F8E5M2, beyond), 0x7b);
  EXPECT_TRUE(std::isnan(reference::get(PM_F8E5M2, "\x7d", 0)));
  EXPECT_EQ(reference::get(PM_F8E5M2, "\xfc", 0), -kInf);
}

TEST(Rounding, EveryNumberOf8BitsComesBack) {
  for (pm_dtype dtype : {PM_F8E4M3, PM_F8E5M2})
    for (int i = 0; i < 256; ++i) {
      const auto bits = uint8_t(i);
      const double value = reference::get(dtype, &bits, 0);
      if (!std::isfinite(value)) continue;
      ASSERT_EQ(bits8(dtype, value), bits) << i;
    }
}

TEST(Rounding, EveryNumberOf16BitsComesBack) {
  for (pm_dtype dtype : {PM_BF16, PM_F16})
    for (uint32_t i = 0; i < 0x10000; ++i) {
      uint16_t bits = uint16_t(i);
      double value = reference::get(dtype, &bits, 0);
      if (std::isnan(value))
        EXPECT_TRUE(std::isnan(reference::get(dtype, std::vector{bits16(dtype, value)}.data(), 0)));
      else
        ASSERT_EQ(bits16(dtype, value), bits) << i;
    }
}

TEST(Rounding, F32) {
  float value;
  for (double x : {1 + 0x1p-24, 0x1p-149, 0x1p-150, 0x1.8p-149, 3e38, 1e39, -0.1}) {
    reference::put(PM_F32, &value, 0, x);
    EXPECT_EQ(value, float(x));
  }
}

// One head, D = 8, rows of a contiguous f32 cache.
struct Tiny {
  explicit Tiny(int keys) : k(keys * 8), v(keys * 8) {
    config.num_heads = config.num_kv_heads = 1;
    config.head_dim = 8;
    config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
    config.layout = PM_ROWS;
    config.page_size = keys;
    config.num_pages = 1;
    config.write_cache = 0;
    query_start = {0, 1};
    kv_len = {keys};
    batch.num_seqs = 1;
    batch.num_tokens = 1;
    batch.query_start = query_start.data();
    batch.kv_len = kv_len.data();
    batch.page_table = &page;
    batch.pages_per_seq = 1;
    args.q = q.data(), args.k_cache = k.data(), args.v_cache = v.data();
    args.scale = 1;
  }
  reference::Row row(int query = 0) { return reference::attend_row(config, batch, args, 0, query, 0); }

  pm_config config = PM_CONFIG_INIT;
  pm_batch batch = PM_BATCH_INIT;
  pm_args args = PM_ARGS_INIT;
  std::vector<float> q = std::vector<float>(64), k, v;
  std::vector<int32_t> query_start, kv_len;
  int32_t page = 0;
};

TEST(Reference, TwoKeysByHand) {
  Tiny t(2);
  t.q[0] = 1;
  t.k[8] = std::log(3.0f);  // scores 0 and ln 3: weights 1/4 and 3/4
  t.v[0] = 4, t.v[8] = -8, t.v[9] = 2;
  auto row = t.row();
  EXPECT_NEAR(row.out[0], -5, 1e-6);
  EXPECT_NEAR(row.out[1], 1.5, 1e-6);
  EXPECT_NEAR(row.abs_pv[0], 7, 1e-6);
  EXPECT_NEAR(row.lse, std::log(4.0), 1e-6);
  EXPECT_EQ(row.keys, 2);
}

TEST(Reference, ScalesSinkCapAndSlopeByHand) {
  Tiny t(2);
  t.q[0] = 1;
  t.k[0] = 1, t.k[8] = 1;
  t.v[0] = 1, t.v[8] = 1;
  t.args.q_scale = 2, t.args.k_scale = 3, t.args.v_scale = 5, t.args.scale = 0.5f;
  t.args.soft_cap = 4;
  float sink = 1, slope = 0.25f;
  t.args.sinks = &sink, t.args.alibi_slopes = &slope;
  double capped = 4 * std::tanh(3.0 / 4), far = std::exp(capped - 0.25), near = std::exp(capped);
  auto row = t.row();
  EXPECT_NEAR(row.out[0], 5 * (far + near) / (far + near + std::exp(1)), 1e-9);
  EXPECT_NEAR(row.lse, std::log(far + near + std::exp(1)), 1e-9);
  EXPECT_NEAR(row.max_score, 6, 1e-9);  // twice the norm of the one product
}

TEST(Reference, NothingVisible) {
  Tiny t(4);
  t.kv_len = {0};
  t.config.causal = 0;
  auto row = t.row();
  EXPECT_EQ(row.lse, -kInf);
  EXPECT_EQ(row.out[0], 0);
  EXPECT_EQ(reference::out_error(t.config, row, std::vector<float>(8).data()), 0);
  EXPECT_GT(reference::out_error(t.config, row, std::vector<float>(8, 1e-30f).data()), 1);
  EXPECT_EQ(reference::lse_error(t.config, row, -std::numeric_limits<float>::infinity()), 0);
  EXPECT_GT(reference::lse_error(t.config, row, -1e30f), 1);
  float sink = 2;
  t.args.sinks = &sink;
  EXPECT_EQ(t.row().lse, 2);
}

TEST(Reference, VisibleKeys) {
  Tiny t(10);
  t.query_start = {0, 4};
  t.batch.num_tokens = 4;
  auto range = [&](int query) {
    auto [begin, end] = reference::visible(t.config, t.batch, 0, query);
    return std::pair(begin, end);
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_EQ(range(0), Pair(0, 7));  // position 6
  EXPECT_EQ(range(3), Pair(0, 10));
  t.config.window_left = 2;
  EXPECT_EQ(range(1), Pair(5, 8));
  t.config.causal = 0;
  EXPECT_EQ(range(1), Pair(5, 10));
  t.config.window_right = 1;
  EXPECT_EQ(range(1), Pair(5, 9));
  uint8_t causal = 1;
  t.batch.causal = &causal;
  EXPECT_EQ(range(1), Pair(5, 8));
  int32_t first = 0;
  t.batch.first_position = &first;
  EXPECT_EQ(range(1), Pair(0, 2));
  first = 30;
  EXPECT_EQ(range(0).first, range(0).second);
}

TEST(Reference, BoundHasTheWidthOfTheDesign) {
  Tiny t(1);
  t.q[0] = 1, t.k[0] = 1;
  t.v[0] = 3;
  auto row = t.row();
  std::vector<float> out(8);
  out[0] = float(3 + 3 * 0x1.0p-16);
  EXPECT_NEAR(reference::out_error(t.config, row, out.data()), 1, 0.01);
  t.q[0] = 32;  // twice the norm of its product is twice 32
  EXPECT_NEAR(reference::out_error(t.config, t.row(), out.data()), 0.5, 0.01);
  out[1] = 1e-6f;  // where all values are 0
  EXPECT_GT(reference::out_error(t.config, row, out.data()), 1e3);
  out[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(reference::out_error(t.config, row, out.data()), kInf);
}

// The definition of tiles in pagemill.h, written out as an index into [P/16][D/r][16][r] and [P/r][D][r].
TEST(Reference, TilesLayout) {
  pm_config config = PM_CONFIG_INIT;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 24;
  config.page_size = 48;
  pm_args args = reference::with_strides(config, PM_ARGS_INIT);
  for (pm_dtype dtype : {PM_BF16, PM_F32, PM_F8E4M3}) {
    config.cache_dtype = dtype;
    const int D = 24, r = dtype == PM_F32 ? 1 : dtype == PM_BF16 ? 2 : 4;
    for (int t = 0; t < 48; ++t)
      for (int d = 0; d < D; ++d) {
        int64_t plane = (5 * 2 + 1) * 2 * 48 * D;
        EXPECT_EQ(reference::key_index(config, args, 5, t, 1, d),
                  plane + ((t / 16 * (D / r) + d / r) * 16 + t % 16) * r + d % r);
        EXPECT_EQ(reference::value_index(config, args, 5, t, 1, d), plane + (t / r * D + d) * r + t % r);
      }
  }
}

// exp without a maximum, element by element, over keys that the reference's store put there.
double naive_out(const Case& c, int seq, int query, int head, int d) {
  const pm_args args = reference::with_strides(c.config, c.args);
  const int group = c.config.num_heads / c.config.num_kv_heads;
  const int64_t token = c.batch.query_start[seq] + query;
  const double position = c.batch.kv_len[seq] - c.q_len(seq) + query;
  double sum = args.sinks ? std::exp(double(args.sinks[head])) : 0, weighted = 0;
  for (int j = 0; j < c.batch.kv_len[seq] && j <= position; ++j) {
    int page = reference::page_of(c.config, c.batch, seq, j), slot = j % c.config.page_size;
    double product = 0;
    for (int i = 0; i < c.config.head_dim; ++i)
      product += reference::get(c.config.dtype, args.q,
                                token * args.q_stride_token + head * args.q_stride_head + i) *
                 reference::get(c.config.cache_dtype, args.k_cache,
                                reference::key_index(c.config, args, page, slot, head / group, i));
    double score = product * args.k_scale * args.q_scale / std::sqrt(c.config.head_dim);
    double weight = std::exp(score - (args.alibi_slopes ? args.alibi_slopes[head] * (position - j) : 0));
    sum += weight;
    weighted += weight * reference::get(c.config.cache_dtype, args.v_cache,
                                        reference::value_index(c.config, args, page, slot, head / group, d));
  }
  return args.v_scale * weighted / sum;
}

TEST(Reference, AgreesWithNaiveFormula) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (pm_dtype dtype : {PM_F32, PM_BF16, PM_F16, PM_F8E4M3, PM_F8E5M2}) {
      Spec spec;
      spec.num_heads = 6, spec.num_kv_heads = 2, spec.head_dim = 40;
      spec.layout = layout;
      spec.page_size = 16;
      spec.dtype = PM_F16;
      spec.out_dtype = PM_F32;
      spec.cache_dtype = dtype;
      spec.sinks = spec.alibi = true;
      spec.k_scale = 0.5, spec.v_scale = 2;
      spec.tokens = TokenForm::kFused, spec.cache = CacheForm::kPadded;
      spec.seqs = {{0, 1, 37, {}, {}}, {1, 3, 21, {}, {}}, {2, 5, 5, {}, {}}};
      Case c(spec);
      reference::store(c.config, c.batch, c.args);
      for (int b = 0; b < 3; ++b)
        for (int h = 0; h < 6; ++h) {
          auto row = reference::attend_row(c.config, c.batch, c.args, b, c.q_len(b) - 1, h);
          for (int d : {0, 7, 39}) EXPECT_NEAR(row.out[d], naive_out(c, b, c.q_len(b) - 1, h, d), 1e-12);
        }
    }
}

}  // namespace
}  // namespace pagemill
