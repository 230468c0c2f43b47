#include <algorithm>
#include <cstring>

#include "plan/cost.h"
#include "plan/plan.h"

namespace pagemill {
namespace {

class ItemBuilder {
 public:
  ItemBuilder(PlanScratch& scratch, PlanData& plan)
      : plan_(plan),
        items_(scratch.unsorted),
        costs_(scratch.costs),
        group_(plan.config.num_heads / plan.config.num_kv_heads),
        tile_tokens_(tile_tokens(group_, plan.config.head_dim)),
        cost_(CostModel::of(plan.selection.kernel->mma, plan.config.head_dim, plan.config.cache_dtype)) {}

  void build() {
    items_.clear();
    costs_.clear();
    plan_.merges.clear();
    double total = 0;
    for_tiles([&](int32_t, Sequence&, int32_t begin, int32_t end, Range keys) {
      total += tile_cost(begin, end, keys);
    });
    total *= plan_.config.num_kv_heads;
    most_ = total / (double{kItemsPerThread} * plan_.config.threads);
    split_ = plan_.config.threads > 1 && total >= kInlineNs;
    for_tiles([&](int32_t b, Sequence& s, int32_t begin, int32_t end, Range keys) {
      add_tile(b, s, begin, end, keys);
    });
    const auto items = static_cast<int64_t>(items_.size());
    plan_.parts = split_ ? static_cast<int32_t>(std::clamp<int64_t>(items, 1, plan_.config.threads)) : 1;
  }

 private:
  template <class F>
  void for_tiles(F f) {
    for (size_t b = 0; b < plan_.sequences.size(); ++b) {
      Sequence& s = plan_.sequences[b];
      for (int32_t begin = 0; begin < s.q_len; begin += tile_tokens_) {
        const int32_t end = std::min(begin + tile_tokens_, s.q_len);
        f(static_cast<int32_t>(b), s, begin, end, visible_keys(s, plan_.window, begin, end));
      }
    }
  }

  double tile_cost(int32_t begin, int32_t end, Range keys) const {
    return cost_.item(int64_t{end - begin} * group_, keys.end - keys.begin);
  }

  void add_tile(int32_t b, Sequence& s, int32_t begin, int32_t end, Range keys) {
    if (s.q_len > tile_tokens_) s.fused = false;  // other tiles read what this one would store
    const int32_t rows = (end - begin) * group_;
    const int32_t heads = heads_of_item(begin, end, keys);
    const int32_t stride = split_keys(heads * tile_cost(begin, end, keys), keys);
    Item item{b, 0, 0, begin, end, keys.begin, keys.end, -1, 0, false};
    if (stride == 0) {
      item.stores = s.fused;
      push(item, rows, heads);
      return;
    }
    const int32_t first = keys.begin / stride, last = (keys.end - 1) / stride;
    if (s.kv_len - s.q_len < last * stride) s.fused = false;  // the last split would store what another reads
    item.merge = static_cast<int32_t>(plan_.merges.size());
    plan_.merges.push_back({partial_floats_, last - first + 1, rows});
    partial_floats_ +=
        int64_t{plan_.config.num_kv_heads} * (last - first + 1) * rows * (plan_.config.head_dim + 2);
    for (int32_t split = first; split <= last; ++split) {
      item.split = split - first;
      item.key_begin = std::max(keys.begin, split * stride);
      item.key_end = std::min(keys.end, (split + 1) * stride);
      item.stores = s.fused && split == last;
      push(item, rows, heads);
    }
  }

  // KV heads that an item takes: fewer where its keys are too few to be split among the threads.
  int32_t heads_of_item(int32_t begin, int32_t end, Range keys) const {
    const int32_t heads =
        heads_together((end - begin) * group_, plan_.config.num_kv_heads, plan_.config.head_dim,
                       dtype_bytes(plan_.config.cache_dtype), plan_.config.batch_invariant != 0);
    if (!split_) return heads;
    const double least = tile_cost(begin, end, {0, std::min(keys.end - keys.begin, kLeastSplitKeys)});
    return std::clamp(static_cast<int32_t>(most_ / least), 1, heads);
  }

  // Splits of a tile end at multiples of this many keys; 0 = one item.
  int32_t split_keys(double cost, Range keys) const {
    if (!split_ || cost <= most_ || keys.begin >= keys.end) return 0;
    int32_t stride = kInvariantKeys;
    if (!plan_.config.batch_invariant) {
      const double wanted = (keys.end - keys.begin) * most_ / cost;
      const int32_t blocks = static_cast<int32_t>(wanted) / kBlockKeys + 1;
      stride = std::max(kLeastSplitKeys, blocks * kBlockKeys);
    }
    return keys.begin / stride == (keys.end - 1) / stride ? 0 : stride;
  }

  // The item for all KV heads, `heads` at a time.
  void push(Item item, int32_t rows, int32_t heads) {
    const double cost = cost_.item(rows, item.key_end - item.key_begin);
    for (int32_t head = 0; head < plan_.config.num_kv_heads; head += heads) {
      item.kv_head_begin = head;
      item.kv_head_end = std::min(head + heads, plan_.config.num_kv_heads);
      items_.push_back(item);
      costs_.push_back(static_cast<float>(cost * (item.kv_head_end - head)));
    }
    plan_.scratch_rows = std::max(plan_.scratch_rows, rows * heads);
  }

  PlanData& plan_;
  std::vector<Item>& items_;
  std::vector<float>& costs_;
  const int32_t group_, tile_tokens_;
  const CostModel cost_;
  double most_ = 0;  // ns of an item
  bool split_ = false;
  int64_t partial_floats_ = 0;
};

// Longest first, so that the last items to be taken are short; equal ones (within an eighth) keep their
// order.
void sort_by_cost(const std::vector<Item>& items, const std::vector<float>& costs,
                  std::vector<Item>& sorted) {
  constexpr uint32_t kBuckets = 1u << 11;  // sign, exponent and three bits of a float's fraction
  uint32_t starts[kBuckets + 1] = {};
  const auto bucket = [](float cost) {
    uint32_t bits;
    std::memcpy(&bits, &cost, 4);
    return kBuckets - 1 - (bits >> 20);
  };
  for (const float cost : costs) ++starts[bucket(cost) + 1];
  for (uint32_t i = 0; i < kBuckets; ++i) starts[i + 1] += starts[i];
  sorted.resize(items.size());
  for (size_t i = 0; i < items.size(); ++i) sorted[starts[bucket(costs[i])]++] = items[i];
}

}  // namespace

void build_items(PlanScratch& scratch, PlanData& plan) {
  plan.scratch_rows = 0;
  ItemBuilder(scratch, plan).build();
  sort_by_cost(scratch.unsorted, scratch.costs, plan.items);
}

}  // namespace pagemill
