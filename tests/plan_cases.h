// Batches to be planned behind the C ABI, and what must hold for every plan.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>
#include <vector>

#include "api/validate.h"
#include "plan/plan.h"

namespace pagemill {

// The cost model's defaults, whatever was tuned on this machine.
inline const bool kUntuned = setenv("PAGEMILL_TUNE", "", 1) == 0;

struct Batch {
  std::vector<int32_t> q_len, kv_len;
  int32_t page_size = 16;

  std::vector<int32_t> query_start{};
  std::vector<std::vector<int32_t>> pages{};  // of each sequence; drawn in order unless the test sets them
};

inline pm_config llama_config(int32_t threads) {
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
inline pm_status plan_batch(pm_config config, Batch& batch, pm_plan& plan, int64_t least_pages = 0) {
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
  config.num_pages = std::max<int64_t>(next_page, least_pages);
  pm_batch in = PM_BATCH_INIT;
  in.num_seqs = num_seqs;
  in.num_tokens = batch.query_start.back();
  in.query_start = batch.query_start.data();
  in.kv_len = batch.kv_len.data();
  in.page_table = table.data();
  in.pages_per_seq = widest;
  return pm_plan_build(&plan, &config, &in);
}

inline PlanData planned(const pm_config& config, Batch batch) {
  pm_plan plan;
  EXPECT_EQ(plan_batch(config, batch, plan), PM_OK) << pm_last_error();
  return plan.current;
}

// Every query of the batch meets each of its visible keys in exactly one item for each KV head.
inline void expect_covers(const PlanData& plan) {
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

}  // namespace pagemill
