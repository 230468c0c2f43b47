// The plan behind the C ABI: what is cut, split, fused and read. No kernel runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "plan_cases.h"

namespace pagemill {
namespace {

TEST(Plan, CoversEveryVisibleKeyOnce) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Batch batch;
    for (int n = static_cast<int>(random() % 12); n > 0; --n) {
      const auto q_len = static_cast<int32_t>(random() % 3 ? random() % 3 : random() % 300);
      batch.q_len.push_back(q_len);
      batch.kv_len.push_back(q_len + static_cast<int32_t>(random() % 4 ? random() % 200 : random() % 20000));
    }
    pm_config config = llama_config(1 << random() % 8);
    config.batch_invariant = random() % 2;
    if (random() % 2) config.window_left = static_cast<int32_t>(random() % 2000);
    expect_covers(planned(config, batch));
  }
}

TEST(Plan, SplitsALongDecodeOverThreadsAtBlocks) {
  const PlanData plan = planned(llama_config(64), {{1}, {100000}});
  ASSERT_EQ(plan.merges.size(), 1u);
  const auto first_head = [](const Item& item) { return item.kv_head_begin == 0; };
  EXPECT_EQ(plan.merges[0].num_splits, std::count_if(plan.items.begin(), plan.items.end(), first_head));
  EXPECT_GE(plan.items.size(), 64u) << "work for every thread";
  for (const Item& item : plan.items) EXPECT_EQ(item.key_begin % kBlockKeys, 0);
  expect_covers(plan);
}

TEST(Plan, DoesNotSplitWhereThereIsWorkForAll) {
  const PlanData plan =
      planned(llama_config(2), {std::vector<int32_t>(16, 1), std::vector<int32_t>(16, 4096)});
  EXPECT_TRUE(plan.merges.empty());
  EXPECT_EQ(plan.items.size(), 16u);
  EXPECT_EQ(plan.parts, 2);
}

TEST(Plan, InvariantSplitsLieAtFixedKeys) {
  pm_config config = llama_config(64);
  config.batch_invariant = 1;
  for (const Item& item : planned(config, {{1}, {100000}}).items) {
    EXPECT_EQ(item.key_begin % kInvariantKeys, 0);
    EXPECT_TRUE(item.key_end % kInvariantKeys == 0 || item.key_end == 100000);
  }
}

TEST(Plan, FusesTheStoreOfDecodes) {
  const PlanData plan = planned(llama_config(1), {{1, 1, 4}, {17, 4096, 99}});
  EXPECT_EQ(plan.fused_tokens, 6);
  EXPECT_EQ(plan.stored_tokens, 0);
  for (const Item& item : plan.items) EXPECT_TRUE(item.stores);
}

TEST(Plan, OnlyTheLastSplitOfADecodeStores) {
  const PlanData plan = planned(llama_config(64), {{1}, {100000}});
  EXPECT_EQ(plan.fused_tokens, 1);
  for (const Item& item : plan.items) EXPECT_EQ(item.stores, item.key_end == 100000);
}

TEST(Plan, StoresAPrefillOfSeveralTilesBefore) {
  const PlanData plan = planned(llama_config(2), {{500, 1}, {500, 33}});
  EXPECT_EQ(plan.stored_tokens, 500);
  EXPECT_EQ(plan.fused_tokens, 1);
}

TEST(Plan, StoresBeforeWhatAnotherSplitReads) {
  pm_config config = llama_config(64);
  config.batch_invariant = 1;  // splits end at multiples of 1024, here amid the new tokens
  const PlanData plan = planned(config, {{4}, {65538}});
  ASSERT_EQ(plan.merges.size(), 1u);
  EXPECT_FALSE(plan.sequences[0].fused);
  EXPECT_EQ(plan.stored_tokens, 4);
}

TEST(Plan, StoresBeforeWhatAnotherSequenceReads) {
  Batch batch{{16, 1}, {16, 32}};
  batch.pages = {{0}, {0, 2}};  // the second begins with the page that the first fills in this step
  const PlanData plan = planned(llama_config(2), batch);
  EXPECT_FALSE(plan.sequences[0].fused);
  EXPECT_TRUE(plan.sequences[1].fused);
}

TEST(Plan, StoresBeforeWhatItsOwnOlderKeysAlias) {
  Batch batch{{1}, {32}};
  batch.pages = {{1, 1}};
  EXPECT_FALSE(planned(llama_config(2), batch).sequences[0].fused);
}

TEST(Plan, TwoWritersOfAPageAreNamed) {
  Batch batch{{1, 1}, {16, 16}};
  batch.pages = {{1}, {1}};
  pm_plan plan;
  EXPECT_EQ(plan_batch(llama_config(2), batch, plan), PM_INVALID_ARGUMENT);
  EXPECT_STREQ(pm_last_error(),
               "page_table[1][0] = 1: expected a page that sequence 0 does not write in this step too");
}

// Neighbours of a claimed page, and pages of a larger cache, are nobody's.
TEST(Plan, OnlyTheVeryPageUnfuses) {
  pm_plan plan;
  for (const int32_t read : {7, 8, 9, 10, 23, 24, 25, 40}) {
    Batch batch{{16, 1}, {16, 32}};
    batch.pages = {{9}, {read, 41}};
    pm_config config = llama_config(2);
    EXPECT_EQ(plan_batch(config, batch, plan, 64), PM_OK) << pm_last_error();
    EXPECT_EQ(plan.current.sequences[0].fused, read != 9) << read;
    EXPECT_TRUE(plan.current.sequences[1].fused);
  }
}

TEST(Plan, MarksOfOlderStepsAreStale) {
  pm_plan plan;
  for (int step = 0; step < 3; ++step) {
    Batch batch{{1, 1}, {16, 16}};
    batch.pages =
        step % 2 ? std::vector<std::vector<int32_t>>{{1}, {0}} : std::vector<std::vector<int32_t>>{{0}, {1}};
    EXPECT_EQ(plan_batch(llama_config(2), batch, plan), PM_OK) << pm_last_error();
    EXPECT_EQ(plan.current.fused_tokens, 2);
  }
}

TEST(Plan, ReadsOnlyThePagesInTheWindow) {
  pm_config config = llama_config(2);
  config.window_left = 31;
  Batch batch{{1}, {160}};
  batch.pages = {{-1, -1, -1, -1, -1, -1, -1, -1, 3, 5}};  // keys 128 .. 159 are visible
  const PlanData plan = planned(config, batch);
  EXPECT_EQ(plan.pages, (std::vector<int32_t>{3, 5}));
  EXPECT_EQ(plan.sequences[0].page_bias, -8);
}

TEST(Plan, CostsAreThoseOfTheModel) {
  const PlanData plan = planned(llama_config(1), {{1, 1, 1, 300}, {100, 5000, 900, 300}});
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const Item& item = plan.items[i];
    const double unit =
        plan.costs_of.unit((item.token_end - item.token_begin) * 4, item.key_end - item.key_begin);
    const double ns = unit * (item.kv_head_end - item.kv_head_begin);
    EXPECT_GE(static_cast<double>(plan.costs[i]), ns * 0.999);
    EXPECT_LE(static_cast<double>(plan.costs[i]), ns * 1.001 + 8 * plan.costs_of.store_token * 300);
  }
}

TEST(Plan, SequencesOfOneTileComeLongestFirst) {
  const PlanData plan = planned(llama_config(1), {{1, 20, 1, 1}, {100, 5000, 900, 300}});
  ASSERT_GT(plan.items.size(), 4u);
  for (size_t i = 1; i < plan.items.size(); ++i) EXPECT_GE(plan.costs[i - 1] * 9 / 8, plan.costs[i]);
}

TEST(Plan, TilesOfAHeadComeTogetherLongestFirst) {
  const PlanData plan = planned(llama_config(2), {{500, 1, 300}, {500, 900, 2000}});
  std::set<std::pair<int32_t, int32_t>> ended;
  for (size_t i = 1; i < plan.items.size(); ++i) {
    const Item &before = plan.items[i - 1], &item = plan.items[i];
    const auto heads = std::pair(item.seq, item.kv_head_begin);
    if (std::pair(before.seq, before.kv_head_begin) == heads) {
      EXPECT_GE(plan.costs[i - 1] * 9 / 8, plan.costs[i]);
    } else {
      ended.insert({before.seq, before.kv_head_begin});
    }
    EXPECT_FALSE(ended.contains(heads)) << "item " << i;
  }
  EXPECT_EQ(plan.items[0].seq, 2);
}

// 64 threads and one head's tiles: by head the last threads would begin when most are done.
TEST(Plan, TilesComeLongestFirstWhereThreadsWouldWait) {
  const PlanData plan = planned(llama_config(64), {{600, 600, 3000}, {600, 600, 3000}});
  for (size_t i = 1; i < plan.items.size(); ++i) EXPECT_GE(plan.costs[i - 1] * 9 / 8, plan.costs[i]);
}

TEST(Plan, ATinyStepRunsInline) {
  pm_config config = llama_config(8);
  config.num_heads = config.num_kv_heads = 1;
  const PlanData plan = planned(config, {{1}, {16}});
  EXPECT_EQ(plan.parts, 1);
  EXPECT_LE(plan.workspace.bytes, size_t{2} << 20);
}

TEST(Plan, ScratchOfAThreadStaysBelowTwoMebibytes) {
  for (const int32_t dim : {64, 128, 256, 512}) {
    for (const int32_t group : {1, 4, 128}) {
      pm_config config = llama_config(1);
      config.num_kv_heads = 1;
      config.num_heads = group;
      config.head_dim = dim;
      config.batch_invariant = 1;
      EXPECT_LE(planned(config, {{600}, {600}}).workspace.bytes, size_t{2} << 20)
          << "D " << dim << " G " << group;
    }
  }
}

TEST(Plan, BuildingAgainReusesStorage) {
  pm_plan plan;
  Batch batch{{1, 40}, {5000, 40}};
  const void* storage[2];
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(plan_batch(llama_config(16), batch, plan), PM_OK);
    storage[i] = plan.current.items.data();
  }
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(plan_batch(llama_config(16), batch, plan), PM_OK);
    EXPECT_EQ(plan.current.items.data(), storage[i % 2]);
  }
}

}  // namespace
}  // namespace pagemill
