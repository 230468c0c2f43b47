// The plan behind the C ABI: what is cut, split, fused and read. No kernel runs.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

#include "api/validate.h"

namespace pagemill {
namespace {

struct Batch {
  std::vector<int32_t> q_len, kv_len;
  int32_t page_size = 16;

  std::vector<int32_t> query_start{};
  std::vector<std::vector<int32_t>> pages{};  // of each sequence; drawn in order unless the test sets them
};

pm_config llama_config(int32_t threads) {
  pm_config c = PM_CONFIG_INIT;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.page_size = 16;
  c.threads = threads;
  c.isa = "scalar";
  return c;
}

// Plans the batch into `plan` (reused where the caller reuses it).
pm_status plan_batch(pm_config config, Batch& batch, pm_plan& plan) {
  const auto num_seqs = static_cast<int32_t>(batch.q_len.size());
  batch.query_start.assign(1, 0);
  for (const int32_t n : batch.q_len) batch.query_start.push_back(batch.query_start.back() + n);
  int32_t next_page = 0, widest = 1;
  batch.pages.resize(batch.q_len.size());
  for (size_t b = 0; b < batch.pages.size(); ++b) {
    const int32_t need = (batch.kv_len[b] + config.page_size - 1) / config.page_size;
    if (batch.pages[b].empty()) {
      for (int32_t p = 0; p < need; ++p) batch.pages[b].push_back(next_page + p);
    }
    next_page += need;
    widest = std::max(widest, static_cast<int32_t>(batch.pages[b].size()));
  }
  std::vector<int32_t> table(static_cast<size_t>(widest * num_seqs), -7);  // -7: no entry
  for (size_t b = 0; b < batch.pages.size(); ++b) {
    std::copy(batch.pages[b].begin(), batch.pages[b].end(), table.begin() + static_cast<int64_t>(b) * widest);
  }
  config.num_pages = next_page;
  pm_batch in = PM_BATCH_INIT;
  in.num_seqs = num_seqs;
  in.num_tokens = batch.query_start.back();
  in.query_start = batch.query_start.data();
  in.kv_len = batch.kv_len.data();
  in.page_table = table.data();
  in.pages_per_seq = widest;
  return pm_plan_build(&plan, &config, &in);
}

PlanData planned(const pm_config& config, Batch batch) {
  pm_plan plan;
  EXPECT_EQ(plan_batch(config, batch, plan), PM_OK) << pm_last_error();
  return plan.current;
}

// Every query of the batch meets each of its visible keys in exactly one item for each KV head.
void expect_covers(const PlanData& plan) {
  struct Tile {
    std::map<int32_t, int32_t> heads;            // begin to end
    std::map<int32_t, std::vector<Range>> keys;  // by first head
  };
  std::map<std::tuple<int32_t, int32_t, int32_t>, Tile> tiles;
  for (const Item& item : plan.items) {
    Tile& tile = tiles[{item.seq, item.token_begin, item.token_end}];
    tile.heads[item.kv_head_begin] = item.kv_head_end;
    tile.keys[item.kv_head_begin].push_back({item.key_begin, item.key_end});
  }
  std::vector<int32_t> tokens(plan.sequences.size());
  for (auto& [place, tile] : tiles) {
    const auto [seq, begin, end] = place;
    EXPECT_EQ(begin, tokens[static_cast<size_t>(seq)]) << "tiles of a sequence follow each other";
    tokens[static_cast<size_t>(seq)] = end;
    int32_t head = 0;
    for (const auto& [head_begin, head_end] : tile.heads) {
      EXPECT_EQ(head_begin, head);
      head = head_end;
    }
    EXPECT_EQ(head, plan.config.num_kv_heads);
    const Range seen = visible_keys(plan.sequences[static_cast<size_t>(seq)], plan.window, begin, end);
    for (auto& [first_head, keys] : tile.keys) {
      std::sort(keys.begin(), keys.end(), [](Range a, Range b) { return a.begin < b.begin; });
      EXPECT_EQ(keys.front().begin, seen.begin);
      EXPECT_EQ(keys.back().end, seen.end);
      for (size_t i = 1; i < keys.size(); ++i) EXPECT_EQ(keys[i].begin, keys[i - 1].end);
    }
  }
  for (size_t b = 0; b < tokens.size(); ++b) EXPECT_EQ(tokens[b], plan.sequences[b].q_len);
}

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
  EXPECT_GE(plan.items.size(), 64u * 4) << "several items for each thread";
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

TEST(Plan, ItemsComeLongestFirst) {
  const PlanData plan = planned(llama_config(1), {{1, 1, 1, 300}, {100, 5000, 900, 300}});
  for (size_t i = 1; i < plan.items.size(); ++i) {
    const auto work = [&](const Item& item) {
      return int64_t{item.key_end - item.key_begin} * (item.kv_head_end - item.kv_head_begin) *
             std::max(8, (item.token_end - item.token_begin) * 4);
    };
    EXPECT_GE(work(plan.items[i - 1]) * 5 / 4, work(plan.items[i]));
  }
}

TEST(Plan, ATinyStepRunsInline) {
  const PlanData plan = planned(llama_config(8), {{1}, {16}});
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
