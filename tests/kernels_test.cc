// Every ISA over dtypes, head dims, groups, page sizes, batches, layouts, features and pairs of them.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

// Every n-th case of the long lists, where tests are scaled down.
int stride() {
  return scaled(100) >= 50 ? 1 : 7;
}

constexpr pm_dtype kDtypes[] = {PM_F32, PM_BF16, PM_F16};
constexpr pm_dtype kCacheDtypes[] = {PM_F32, PM_BF16, PM_F16, PM_F8E4M3, PM_F8E5M2};
constexpr pm_layout kLayouts[] = {PM_TILES, PM_ROWS, PM_NO_CACHE};

std::vector<SequenceSpec> sequences(const std::vector<std::pair<int, int>>& lengths) {
  std::vector<SequenceSpec> seqs;
  for (auto [q_len, kv_len] : lengths) seqs.push_back({int(seqs.size()), q_len, kv_len, {}, {}});
  return seqs;
}

const std::vector<SequenceSpec> kDecode = sequences({{1, 37}, {1, 1}, {1, 130}, {1, 16}});
const std::vector<SequenceSpec> kPrefill = sequences({{40, 40}, {17, 72}});
const std::vector<SequenceSpec> kMixed =
    sequences({{1, 37}, {5, 5}, {3, 130}, {0, 9}, {0, 0}, {1, 1}, {40, 72}});

Spec base(const char* isa, pm_layout layout = PM_TILES) {
  static uint64_t seed = 0;
  Spec spec;
  spec.seed = ++seed;
  spec.isa = isa;
  spec.num_heads = 6, spec.num_kv_heads = 2;
  spec.dtype = spec.out_dtype = spec.cache_dtype = PM_BF16;
  spec.layout = layout;
  spec.seqs = kMixed;
  return spec;
}

// Without a cache every sequence has its new keys alone.
Spec fitted(Spec spec) {
  if (spec.layout == PM_NO_CACHE)
    for (SequenceSpec& s : spec.seqs) s.kv_len = s.q_len = std::min(s.q_len, s.kv_len);
  return spec;
}

class Kernels : public EachIsa {};
PM_INSTANTIATE_EACH_ISA(Kernels);

TEST_P(Kernels, Mixtures) {
  for (pm_layout layout : kLayouts)
    for (pm_dtype dtype : kDtypes)
      for (pm_dtype cache : kCacheDtypes)
        for (bool wide_out : {false, true})
          for (const auto& seqs : {kDecode, kPrefill, kMixed}) {
            if (layout == PM_NO_CACHE && cache != dtype) continue;
            Spec spec = base(isa, layout);
            spec.dtype = dtype, spec.cache_dtype = cache, spec.out_dtype = wide_out ? PM_F32 : dtype;
            spec.seqs = seqs;
            EXPECT_TRUE(right(fitted(spec)));
          }
}

TEST_P(Kernels, EveryHeadDim) {
  for (int dim = 16; dim <= 512; dim += 8 * stride())
    for (pm_dtype cache : kCacheDtypes) {
      Spec spec = base(isa, kLayouts[dim / 8 % 2]);
      spec.head_dim = dim;
      spec.cache_dtype = cache;
      if (cache == PM_F32 || cache == PM_F16) spec.dtype = spec.out_dtype = cache;
      spec.num_heads = 2, spec.num_kv_heads = 1;
      spec.seqs = sequences({{1, 50}, {20, 35}, {1, 140}});
      EXPECT_TRUE(right(spec));
      spec.layout = spec.layout == PM_TILES ? PM_ROWS : PM_TILES;
      EXPECT_TRUE(right(spec));
    }
}

TEST_P(Kernels, Groups) {
  for (int group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 64, 71, 127, 128})
    for (int kv_heads : {1, 3}) {
      Spec spec = base(isa, kLayouts[group % 2]);
      if (kv_heads == 3) spec.cache_dtype = PM_F8E4M3;
      spec.num_kv_heads = kv_heads, spec.num_heads = kv_heads * group;
      spec.seqs = sequences({{1, 50}, {9, 20}, {2, 140}});
      EXPECT_TRUE(right(spec));
    }
}

TEST_P(Kernels, PageSizes) {
  for (int page :
       {1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 48, 64, 100, 112, 127, 128, 129, 255, 256, 400, 1000, 1024})
    for (pm_layout layout : {PM_TILES, PM_ROWS})
      for (pm_dtype cache : {PM_BF16, PM_F32, PM_F8E5M2}) {
        if (layout == PM_TILES && page % 16) continue;
        Spec spec = base(isa, layout);
        spec.page_size = page;
        spec.cache_dtype = cache;
        spec.seqs = sequences({{1, 300}, {33, 200}, {1, page}, {1, page + 1}, {2, 2}});
        EXPECT_TRUE(right(spec));
      }
}

TEST_P(Kernels, Batches) {
  const std::vector<std::vector<std::pair<int, int>>> batches = {
      {},
      {{0, 0}},
      {{0, 5}, {0, 0}},
      {{1, 1}},
      {{1, 2000}},
      {{2, 2}},
      {{300, 300}},
      {{7, 1100}},
      {{1, 16}, {1, 17}, {1, 15}, {1, 127}, {1, 128}, {1, 129}, {1, 1023}, {1, 1024}, {1, 1025}},
      {{128, 128}, {129, 129}, {127, 127}},
      {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}},
      {{100, 500}, {1, 900}, {0, 3}, {1, 4}, {50, 50}},
      {{1, 1500}, {1, 3}, {1, 2}},
  };
  int count = 0;
  for (const auto& lengths : batches)
    for (pm_layout layout : kLayouts)
      for (int threads : {1, 2, 13})
        for (bool invariant : {false, true}) {
          if (count++ % stride() != 0) continue;
          Spec spec = base(isa, layout);
          spec.seqs = sequences(lengths);
          spec.threads = threads;
          spec.batch_invariant = invariant;
          spec.padding_tokens = threads % 3;
          EXPECT_TRUE(right(fitted(spec)));
        }
}

TEST_P(Kernels, MemoryForms) {
  for (TokenForm tokens : {TokenForm::kContiguous, TokenForm::kFused, TokenForm::kPadded})
    for (CacheForm cache : {CacheForm::kContiguous, CacheForm::kHeadMajor, CacheForm::kPadded,
                            CacheForm::kInterleaved, CacheForm::kPaired})
      for (pm_layout layout : kLayouts)
        for (Edge edge : {Edge::kEnd, Edge::kStart})
          for (pm_dtype dtype : kDtypes) {
            Spec spec = base(isa, layout);
            spec.tokens = tokens, spec.cache = cache, spec.edge = edge;
            spec.dtype = spec.out_dtype = dtype;
            if (dtype == PM_F16) spec.cache_dtype = PM_F8E4M3;
            spec.out_padded = edge == Edge::kStart;
            spec.seqs = sequences({{1, 37}, {1, 1}, {20, 40}});
            EXPECT_TRUE(right(fitted(spec)));
          }
}

// attend_<mma>_d<dim>_<isa>: the dtypes and head dim that choose this kernel on its own ISA.
Spec spec_for(const pm_kernel_info& kernel) {
  const std::string name = kernel.name;
  Spec spec = base(kernel.isa);
  const bool f32_rows = name.find("_f32") != std::string::npos;
  const bool bf16_keys = name.find("bf16_d") != std::string::npos,
             f16_keys = name.find("f32f16_d") != std::string::npos;
  spec.dtype = spec.out_dtype = f32_rows ? PM_F32 : PM_BF16;
  spec.cache_dtype = bf16_keys ? PM_BF16 : f16_keys ? PM_F16 : PM_F32;
  spec.head_dim = kernel.head_dim ? kernel.head_dim : 72;
  return spec;
}

TEST_P(Kernels, EveryRowOfTheListIsReached) {
  for (int32_t i = 0; i < pm_kernel_count(); ++i) {
    pm_kernel_info kernel{};
    kernel.struct_size = sizeof kernel;
    check(pm_kernel_get(i, &kernel));
    if (GetParam() != kernel.isa) continue;
    Spec spec = spec_for(kernel);
    Case c(spec);
    EXPECT_STREQ(Plan(c.config, c.batch).stats().kernel, kernel.name);
    EXPECT_TRUE(right(spec));
  }
}

using Feature = std::function<void(Spec&)>;

const std::vector<Feature> kFeatures = {
    [](Spec& s) { s.causal = false; },
    [](Spec& s) { s.window_left = 20; },
    [](Spec& s) { s.window_left = 0; },
    [](Spec& s) { s.window_right = 3, s.causal = false; },
    [](Spec& s) { s.soft_cap = 1.5; },
    [](Spec& s) { s.sinks = true; },
    [](Spec& s) { s.alibi = true; },
    [](Spec& s) { s.scale = 0.3f; },
    [](Spec& s) { s.scale = -0.2f; },
    [](Spec& s) { s.q_scale = 0.7f, s.k_scale = 1.3f, s.v_scale = 3; },
    [](Spec& s) { s.lse = false; },
    [](Spec& s) { s.write_cache = false; },
    [](Spec& s) { s.batch_invariant = true; },
    [](Spec& s) { s.threads = 11; },
    [](Spec& s) { s.layout = PM_ROWS, s.page_size = 7; },
    [](Spec& s) { s.layout = PM_NO_CACHE; },
    [](Spec& s) { s.dtype = s.out_dtype = s.cache_dtype = PM_F32; },
    [](Spec& s) { s.cache_dtype = PM_F16; },
    [](Spec& s) { s.cache_dtype = PM_F8E4M3; },
    [](Spec& s) { s.cache_dtype = PM_F8E5M2, s.k_scale = 0.5, s.v_scale = 4; },
    [](Spec& s) { s.amplitude = 20; },
    [](Spec& s) { s.seqs[0].causal = !s.causal, s.seqs[6].causal = !s.causal; },
    [](Spec& s) { s.seqs[2].first_position = 60, s.seqs[6].first_position = 10; },
    // Two sequences read the pages that sequence 6 fills in this step.
    [](Spec& s) {
      s.seqs.push_back({7, 1, 90, {}, {}, 6, s.layout == PM_ROWS ? 10 : 4});
      s.seqs.insert(s.seqs.begin(), {8, 3, 70, {}, {}, 6, 3});
    },
    [](Spec& s) {
      s.row_index = true, s.table_padding = 3, s.tokens = TokenForm::kFused, s.padding_tokens = 3;
    },
};

TEST_P(Kernels, FeaturesAndPairs) {
  for (size_t i = 0; i < kFeatures.size(); ++i)
    for (size_t j = i; j < kFeatures.size(); j += size_t(stride())) {
      Spec spec = base(isa);
      kFeatures[i](spec);
      if (j > i) kFeatures[j](spec);
      EXPECT_TRUE(right(fitted(spec))) << "features " << i << " and " << j;
    }
}

TEST_P(Kernels, FeaturesOfSplitSequences) {
  const std::vector<Feature> features = {
      [](Spec& s) { s.sinks = true; },
      [](Spec& s) { s.alibi = true; },
      [](Spec& s) { s.soft_cap = 1.5; },
      [](Spec& s) { s.window_left = 2300; },
      [](Spec& s) { s.q_scale = 0.7f, s.k_scale = 1.3f, s.v_scale = 3; },
      [](Spec& s) { s.cache_dtype = PM_F8E4M3, s.k_scale = 1.3f, s.v_scale = 3; },
  };
  for (const Feature& feature : features)
    for (pm_layout layout : {PM_TILES, PM_ROWS})
      for (bool invariant : {false, true}) {
        Spec spec = base(isa, layout);
        spec.threads = 16;
        spec.batch_invariant = invariant;
        spec.seqs = sequences({{1, 3000}, {3, 2500}});
        feature(spec);
        Case c(spec);
        EXPECT_GT(Plan(c.config, c.batch).stats().split_items, 0);
        EXPECT_TRUE(right(spec));
      }
}

// Bit for bit what one item gives that folds the same splits in ascending order.
TEST_P(Kernels, InvariantSplitsKeepEveryBit) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (auto [dtype, cache] : {std::pair{PM_F32, PM_BF16}, {PM_F32, PM_F8E4M3}, {PM_BF16, PM_F8E4M3}}) {
      Spec spec = base(isa, layout);
      spec.dtype = spec.out_dtype = dtype, spec.cache_dtype = cache;
      spec.batch_invariant = true;
      spec.seqs = sequences({{1, 5000}, {2, 6000}});
      Spec split = spec;
      spec.threads = 1, split.threads = 16;
      Case whole(spec), parts(split);
      EXPECT_GT(Plan(parts.config, parts.batch).stats().split_items, 0);
      run(whole);
      run(parts);
      EXPECT_EQ(whole.outputs() == parts.outputs(), true) << describe(split);
    }
}

TEST_P(Kernels, CrossAttention) {
  for (pm_layout layout : {PM_TILES, PM_ROWS})
    for (int left : {-1, 3, 40})
      for (int right_side : {-1, 0, 5})
        for (auto lengths : {std::pair(16, 8), {60, 33}, {5, 0}, {300, 20}, {1, 77}}) {
          Spec spec = base(isa, layout);
          spec.causal = false, spec.write_cache = false;
          spec.window_left = left, spec.window_right = right_side;
          spec.seqs = sequences({lengths, {1, 40}});
          EXPECT_TRUE(right(spec));
        }
}

// Rows whose scores come from partial sums far larger than themselves: in one chain of 64 their rounding
// errors exceed the bound, with one ISA's order of operations or another's.
TEST_P(Kernels, LargePartialSums) {
  for (uint64_t seed : {31, 677, 1089, 1200, 2338, 3151}) {
    Spec spec = base(isa);
    spec.seed = seed;
    spec.dtype = spec.out_dtype = spec.cache_dtype = PM_F32;
    spec.amplitude = 20;
    EXPECT_TRUE(right(spec));
  }
}

TEST_P(Kernels, RandomCases) {
  for (int i = 0; i < scaled(150); ++i) {
    Spec spec = random_spec(1'000'000 + uint64_t(i), Limits{});
    spec.isa = isa;
    EXPECT_TRUE(right(spec));
  }
}

}  // namespace
}  // namespace pagemill
