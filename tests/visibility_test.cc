// Which keys a query sees, to the key: with q = 0 all weights are equal, and with V of key j one-hot at j mod
// D, out * n counts the visible keys of each residue.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Sets dims [0, D) of key or value j of sequence seq, wherever it comes from: the step's tokens or the cache.
template <class F>
void set_row(Case& c, bool value, int seq, int j, F&& element) {
  const pm_args args = reference::with_strides(c.config, c.args);
  const int first_new = c.spec.seqs[seq].kv_len - c.q_len(seq), D = c.config.head_dim;
  const bool is_new = j >= first_new && (c.config.layout == PM_NO_CACHE || c.config.write_cache);
  for (int head = 0; head < c.config.num_kv_heads; ++head)
    for (int d = 0; d < D; ++d) {
      if (is_new) {
        int64_t token = c.batch.query_start[seq] + j - first_new;
        if (value)
          reference::put(c.config.dtype, const_cast<void*>(args.v_new),
                         token * args.v_new_stride_token + head * args.v_new_stride_head + d, element(d));
        else
          reference::put(c.config.dtype, const_cast<void*>(args.k_new),
                         token * args.k_new_stride_token + head * args.k_new_stride_head + d, element(d));
        continue;
      }
      int page = reference::page_of(c.config, c.batch, seq, j), slot = j % c.config.page_size;
      if (value)
        reference::put(c.config.cache_dtype, args.v_cache,
                       reference::value_index(c.config, args, page, slot, head, d), element(d));
      else
        reference::put(c.config.cache_dtype, args.k_cache,
                       reference::key_index(c.config, args, page, slot, head, d), element(d));
    }
}

// The rule of pagemill.h, key by key.
bool sees(const Spec& spec, const SequenceSpec& s, int query, int j) {
  int position = s.first_position.value_or(s.kv_len - s.q_len) + query;
  if (s.causal.value_or(spec.causal) && j > position) return false;
  if (spec.window_left >= 0 && j < position - spec.window_left) return false;
  return spec.window_right < 0 || j <= position + spec.window_right;
}

bool seen_by_any(const Spec& spec, const SequenceSpec& s, int j) {
  for (int i = 0; i < s.q_len; ++i)
    if (sees(spec, s, i, j)) return true;
  return false;
}

void expect_exact_visibility(Spec spec) {
  spec.amplitude = 0;
  spec.out_dtype = PM_F32;
  Case c(spec);
  const int D = spec.head_dim;
  for (size_t b = 0; b < spec.seqs.size(); ++b)
    for (int j = 0; j < spec.seqs[b].kv_len; ++j)
      if (seen_by_any(spec, spec.seqs[b], j)) set_row(c, true, int(b), j, [&](int d) { return d == j % D; });
  c.save();
  label_faults(describe(spec));
  ASSERT_NO_THROW(run(c)) << describe(spec);
  for (size_t b = 0; b < spec.seqs.size(); ++b)
    for (int i = 0; i < spec.seqs[b].q_len; ++i) {
      std::vector<int> counts(D);
      int visible = 0;
      for (int j = 0; j < spec.seqs[b].kv_len; ++j)
        if (sees(spec, spec.seqs[b], i, j)) ++counts[j % D], ++visible;
      for (int h = 0; h < spec.num_heads; ++h) {
        auto* out = reinterpret_cast<const float*>(c.out_row(int(b), i, h));
        for (int d = 0; d < D; ++d)
          ASSERT_NEAR(out[d] * std::max(visible, 1), counts[d], 0.02 * counts[d])
              << "sequence " << b << " query " << i << " head " << h << " dim " << d << "\n"
              << describe(spec);
        if (visible)
          ASSERT_NEAR(c.lse(int(b), i, h), std::log(visible), 0.005) << describe(spec);
        else
          ASSERT_EQ(c.lse(int(b), i, h), -kInf) << describe(spec);
      }
    }
}

Spec uniform(const char* isa, pm_layout layout, pm_dtype dtype) {
  Spec spec;
  spec.isa = isa;
  spec.num_heads = 2, spec.head_dim = 64;
  spec.cache_dtype = dtype;
  spec.dtype = spec.out_dtype = reference::size_of(dtype) == 1 ? PM_BF16 : dtype;
  spec.layout = layout;
  spec.seqs = {{0, 1, 130, {}, {}}, {1, 40, 40, {}, {}}, {2, 9, 60, {}, {}}, {3, 1, 16, {}, {}}};
  return spec;
}

class Visibility : public EachIsa {};
PM_INSTANTIATE_EACH_ISA(Visibility);

TEST_P(Visibility, Windows) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (pm_dtype dtype : {PM_BF16, PM_F32, PM_F8E4M3})
      for (bool causal : {true, false})
        for (int left : {-1, 0, 1, 14, 15, 16, 17, 31, 63, 128})
          for (int right_side : {-1, 0, 1, 15, 16, 40}) {
            Spec spec = uniform(isa, layout, dtype);
            spec.causal = causal, spec.window_left = left, spec.window_right = right_side;
            ASSERT_NO_FATAL_FAILURE(expect_exact_visibility(spec));
          }
}

TEST_P(Visibility, SplitsAndBlocks) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (int threads : {1, 16})
      for (bool invariant : {false, true})
        for (int kv_len : {127, 128, 129, 1023, 1024, 1025, 1100})
          for (int left : {-1, 0, 127, 128, 1000}) {
            Spec spec = uniform(isa, layout, PM_BF16);
            spec.threads = threads, spec.batch_invariant = invariant, spec.window_left = left;
            spec.seqs = {{0, 1, kv_len, {}, {}}, {1, 3, kv_len, {}, {}}};
            ASSERT_NO_FATAL_FAILURE(expect_exact_visibility(spec));
          }
}

TEST_P(Visibility, PositionsPerSequenceAndCrossAttention) {
  for (pm_layout layout : {PM_TILES, PM_ROWS, PM_NO_CACHE})
    for (int left : {-1, 0, 5, 33})
      for (int right_side : {-1, 0, 7}) {
        Spec spec = uniform(isa, layout, PM_F32);
        spec.window_left = left, spec.window_right = right_side;
        if (layout == PM_NO_CACHE) {
          for (SequenceSpec& s : spec.seqs) s.kv_len = s.q_len;
        } else {
          spec.seqs[0].first_position = 3;
          spec.seqs[2].first_position = 70;
        }
        spec.seqs[1].causal = false;
        ASSERT_NO_FATAL_FAILURE(expect_exact_visibility(spec));
        if (layout == PM_NO_CACHE) continue;
        spec.causal = false, spec.write_cache = false;
        spec.seqs = {{0, 16, 8, {}, {}}, {1, 50, 20, {}, {}}, {2, 5, 0, {}, {}}};
        ASSERT_NO_FATAL_FAILURE(expect_exact_visibility(spec));
      }
}

// Rows that see a NaN or inf are as the reference says; all others keep every bit.
void expect_contained(Spec spec, int poisoned, double poison, bool value) {
  Case clean(spec), dirty(spec);
  set_row(dirty, value, 0, poisoned, [&](int) { return poison; });
  dirty.save();
  label_faults(describe(spec));
  ASSERT_NO_THROW(run(clean));
  ASSERT_NO_THROW(run(dirty));
  for (size_t b = 0; b < spec.seqs.size(); ++b)
    for (int i = 0; i < spec.seqs[b].q_len; ++i)
      for (int h = 0; h < spec.num_heads; ++h) {
        if (b == 0 && sees(spec, spec.seqs[0], i, poisoned)) {
          if (std::isnan(poison) || value) {
            EXPECT_FALSE(std::isfinite(reference::get(spec.out_dtype, dirty.out_row(0, i, h), 0)))
                << "query " << i << " loses the " << poison << " of key " << poisoned << "\n"
                << describe(spec);
          }
          continue;
        }
        ASSERT_EQ(reference::error_in_bounds(dirty.config, dirty.batch, dirty.args, int(b), i, h) <= 1, true)
            << "sequence " << b << " query " << i << " meets the " << poison << " of key " << poisoned << "\n"
            << describe(spec);
        if (spec.batch_invariant) {
          ASSERT_EQ(std::memcmp(clean.out_row(int(b), i, h), dirty.out_row(int(b), i, h),
                                spec.head_dim * reference::size_of(spec.out_dtype)),
                    0);
        }
      }
}

TEST_P(Visibility, PoisonOutOfSightStaysThere) {
  for (pm_layout layout : {PM_TILES, PM_ROWS, PM_NO_CACHE})
    for (pm_dtype dtype : {PM_BF16, PM_F32, PM_F8E4M3, PM_F8E5M2})
      for (int left : {-1, 6})
        for (double poison : {kNaN, kInf, -kInf})
          for (bool value : {true, false})
            for (bool invariant : {false, true}) {
              const bool f8 = reference::size_of(dtype) == 1;
              if (f8 && (layout == PM_NO_CACHE || std::isinf(poison))) continue;  // stored as a number
              Spec spec = uniform(isa, layout, dtype);
              spec.window_left = left, spec.batch_invariant = invariant;
              spec.seqs = {{0, 40, 70, {}, {}}, {1, 1, 30, {}, {}}, {2, 8, 8, {}, {}}};
              if (layout == PM_NO_CACHE) spec.seqs = {{0, 40, 40, {}, {}}, {1, 8, 8, {}, {}}};
              const int first = spec.seqs[0].kv_len - 40;  // position of query 0
              for (int poisoned : {std::max(first - 3, 0), first, first + 1, first + 17, first + 39})
                ASSERT_NO_FATAL_FAILURE(expect_contained(spec, poisoned, poison, value));
            }
}

// The maximum of such scores is that of nothing at all, and the sum is not.
TEST_P(Visibility, ANaNAmongScoresOfMinusInfinityIsSeen) {
  for (pm_dtype dtype : {PM_BF16, PM_F32})
    for (int threads : {1, 16})
      for (bool invariant : {false, true})
        for (int kv_len : {20, 3000}) {
          Spec spec = uniform(isa, PM_TILES, dtype);
          spec.threads = threads, spec.batch_invariant = invariant;
          spec.seqs = {{0, 1, kv_len, {}, {}}};
          Case c(spec);
          for (int h = 0; h < spec.num_heads; ++h)
            reference::put(dtype, const_cast<void*>(c.args.q), int64_t{h} * spec.head_dim, 1);
          for (int j = 0; j < kv_len; ++j) set_row(c, false, 0, j, [](int d) { return d == 0 ? -kInf : 0; });
          set_row(c, false, 0, kv_len - 1, [](int) { return kNaN; });
          c.save();
          run(c);
          for (int h = 0; h < spec.num_heads; ++h) {
            EXPECT_TRUE(std::isnan(reference::get(dtype, c.out_row(0, 0, h), 5))) << describe(spec);
            EXPECT_TRUE(std::isnan(c.lse(0, 0, h))) << describe(spec);
          }
        }
}

TEST_P(Visibility, PoisonInAQueryStaysInItsRow) {
  Spec spec = uniform(isa, PM_TILES, PM_BF16);
  Case c(spec);
  const int poisoned = c.batch.query_start[1] + 7;
  for (int d = 0; d < spec.head_dim; ++d)
    reference::put(spec.dtype, const_cast<void*>(c.args.q), (int64_t{poisoned} * 2 + 1) * spec.head_dim + d,
                   kNaN);
  c.save();
  run(c);
  for (size_t b = 0; b < spec.seqs.size(); ++b)
    for (int i = 0; i < spec.seqs[b].q_len; ++i)
      for (int h = 0; h < 2; ++h) {
        if (c.batch.query_start[b] + i == poisoned && h == 1) continue;
        ASSERT_LE(reference::error_in_bounds(c.config, c.batch, c.args, int(b), i, h), 1);
      }
}

}  // namespace
}  // namespace pagemill
