#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "plan/plan.h"

namespace pagemill {
namespace {

constexpr int32_t kManyItems = 32;    // for each thread
constexpr double kInlineNs = 12000;   // below this a step is not worth waking another thread
constexpr double kGoodEnough = 1.03;  // of the share, for the slowest thread
constexpr double kLeastGain = 0.998;  // of the slowest thread's time, for more splits
constexpr double kLeastPiece = 2;     // times what a split adds

// A way to split.
struct Cut {
  bool into_rest;  // of a thread's share when a tile's turn comes; else into the whole share
  int pieces;
};
constexpr Cut kWays[] = {{true, 1},  {false, 1}, {true, 2},  {false, 2},
                         {false, 4}, {true, 4},  {false, 8}, {false, 16}};
constexpr double kLeastRest = 1.0 / 16;  // of the share, however little is left of it

// Longest first, so that the last items to be taken are short; equal ones (within 1/32) keep their order.
void sort_by_cost(const Work& work, Work& sorted) {
  // By exponent and five bits of a float's fraction; from 1 ns to 4 s.
  constexpr int kShift = 18;
  constexpr uint32_t kBuckets = 32 * 32, kFirst = 0x3f800000u >> kShift;  // 1.0f
  uint32_t starts[kBuckets + 1] = {};
  const auto bucket = [&](float cost) {
    uint32_t bits;
    std::memcpy(&bits, &cost, 4);
    bits >>= kShift;
    return kBuckets - 1 - (std::clamp(bits, kFirst, kFirst + kBuckets - 1) - kFirst);
  };
  for (const float cost : work.costs) ++starts[bucket(cost) + 1];
  for (uint32_t i = 0; i < kBuckets; ++i) starts[i + 1] += starts[i];
  sorted.items.resize(work.items.size());
  sorted.costs.resize(work.items.size());
  for (size_t i = 0; i < work.items.size(); ++i) {
    const uint32_t at = starts[bucket(work.costs[i])]++;
    sorted.items[at] = work.items[i];
    sorted.costs[at] = work.costs[i];
  }
  sorted.merges = work.merges;
}

class ItemBuilder {
 public:
  ItemBuilder(PlanScratch& scratch, PlanData& plan)
      : scratch_(scratch),
        plan_(plan),
        config_(plan.config),
        group_(config_.num_heads / config_.num_kv_heads),
        tile_tokens_(tile_tokens(group_, config_.head_dim, item_rows())) {}

  void build() {
    cut_tiles();
    sort_by_cost(scratch_.uncut, scratch_.best);
    plan_.parts = 1;
    const bool parallel = config_.threads > 1 && plan_.unsplit_ns >= kInlineNs;
    if (parallel) choose_splits();
    decide_stores();
    list_heads();
    if (parallel) {
      const auto items = static_cast<int64_t>(plan_.items.size());
      plan_.parts = static_cast<int32_t>(std::clamp<int64_t>(items, 1, config_.threads));
    }
    place_partials();
  }

 private:
  // What the ISA likes best, unless that leaves threads too few items to end together.
  int32_t item_rows() const {
    const int32_t most = plan_.selection.kernel->isa->item_rows;
    if (config_.threads == 1 || most == kItemRows) return most;
    const int32_t tokens = tile_tokens(group_, config_.head_dim, most);
    int64_t items = 0;
    for (const Sequence& s : plan_.sequences) items += (s.q_len + tokens - 1) / tokens * config_.num_kv_heads;
    return items < int64_t{kManyItems} * config_.threads ? kItemRows : most;
  }

  int32_t rows(const Item& item) const { return (item.token_end - item.token_begin) * group_; }
  static int32_t heads(const Item& item) { return item.kv_head_end - item.kv_head_begin; }
  // Items that it takes for all KV heads.
  int32_t repetitions(const Item& item) const {
    return (config_.num_kv_heads + heads(item) - 1) / heads(item);
  }

  void push(const Item& item, Work& out) const {
    const Sequence& s = plan_.sequences[static_cast<size_t>(item.seq)];
    double cost = plan_.costs_of.unit(rows(item), item.key_end - item.key_begin);
    if (s.fused && item.key_end == s.kv_len) cost += plan_.costs_of.store_token * s.q_len;
    out.items.push_back(item);
    out.costs.push_back(static_cast<float>(cost * heads(item)));
  }

  // One item for each tile of queries, for as many heads as go together. Until the end of planning an item
  // stands for all KV heads, its own number at a time.
  void cut_tiles() {
    Work& tiles = scratch_.uncut;
    tiles.items.clear();
    tiles.costs.clear();
    plan_.scratch_rows = 0;
    plan_.unsplit_ns = 0;
    for (size_t b = 0; b < plan_.sequences.size(); ++b) {
      Sequence& s = plan_.sequences[b];
      if (s.q_len > tile_tokens_) s.fused = false;  // every tile reads what one of them would store
      for (int32_t begin = 0; begin < s.q_len; begin += tile_tokens_) {
        const int32_t end = std::min(begin + tile_tokens_, s.q_len);
        const Range keys = visible_keys(s, plan_.window, begin, end);
        const int32_t rows_of_head = (end - begin) * group_;
        const int32_t shared = shared_block_keys(config_.layout, config_.page_size,
                                                 rows_of_head >= plan_.selection.kernel->isa->many_rows,
                                                 config_.batch_invariant != 0);
        const int32_t together = heads_together(rows_of_head, config_.num_kv_heads, config_.head_dim,
                                                dtype_bytes(config_.cache_dtype), shared);
        push({static_cast<int32_t>(b), 0, together, begin, end, keys.begin, keys.end,
              together > 1 ? shared : kBlockKeys, -1, 0, false},
             tiles);
        plan_.scratch_rows = std::max(plan_.scratch_rows, (end - begin) * group_ * together);
        plan_.unsplit_ns += static_cast<double>(tiles.costs.back()) * config_.num_kv_heads / together;
      }
    }
  }

  // Simulates the run with no tile split, with each head for itself and with more and more splits, and takes
  // what ends first. Heads go apart only when splits of all heads together do not help, or at once where
  // there are items for every thread.
  void choose_splits() {
    share_ = plan_.unsplit_ns / config_.threads;
    Work& best = scratch_.best;
    if (best.items.empty() || latest_end(best) <= share_ * kGoodEnough) return;
    Simulation& simulation = scratch_.simulation;
    simulation.set_shape(config_.num_kv_heads, config_.head_dim, plan_.costs_of.merge_float);
    scratch_.tiles = best;
    double least = simulation.run(best, true, config_.threads);
    const auto consider = [&](const Work& unsorted) {
      sort_by_cost(unsorted, scratch_.trial);
      const double ns = simulation.run(scratch_.trial, true, config_.threads, least * kLeastGain);
      if (!(ns < least)) return;
      least = ns;
      std::swap(scratch_.trial, best);
    };
    const auto consider_splits = [&] {
      for (const Cut& way : kWays) {
        if (least <= share_ * kGoodEnough) return;
        cut(way);
        consider(scratch_.cut);
        if (config_.batch_invariant) return;  // its splits lie at fixed keys
      }
    };
    const bool few = std::ssize(best.items) < config_.threads;
    if (few) consider_splits();
    const bool parted = least > share_ * kGoodEnough && part_heads();
    if (parted) consider(scratch_.tiles);
    if (parted || !few) consider_splits();
  }

  // When the last thread ends at the latest, in ns, as each item begins no later than an even share of what
  // comes before it.
  double latest_end(const Work& unsplit) const {
    double before = 0, latest = 0;
    for (size_t i = 0; i < unsplit.items.size(); ++i) {
      const auto cost = static_cast<double>(unsplit.costs[i]);
      before += cost * repetitions(unsplit.items[i]);
      latest = std::max(latest, (before - cost) / config_.threads + cost);
    }
    return latest;
  }

  // Each head of the tiles for itself. False if they were that already.
  bool part_heads() {
    bool parted = false;
    Work& tiles = scratch_.tiles;
    for (size_t i = 0; i < tiles.items.size(); ++i) {
      Item& tile = tiles.items[i];
      tiles.costs[i] /= static_cast<float>(heads(tile));
      parted |= heads(tile) > 1;
      tile.kv_head_end = 1;
      tile.block_keys = kBlockKeys;
    }
    return parted;
  }

  // Goes through the tiles, longest first, and cuts them so that `pieces` of their pieces fit into a thread's
  // share; or, into what is left of it, those that do not fit there whole.
  void cut(const Cut& way) {
    Work& out = scratch_.cut;
    out.items.clear();
    out.costs.clear();
    out.merges.clear();
    double level = 0;  // ns: how far the threads are, all alike, when the tile's turn comes
    const Work& tiles = scratch_.tiles;
    for (size_t i = 0; i < tiles.items.size(); ++i) {
      const auto cost = static_cast<double>(tiles.costs[i]);
      const double room = way.into_rest ? std::max(share_ - level, share_ * kLeastRest) : share_;
      const double wanted = way.into_rest && cost <= room ? 1 : cost * way.pieces / room;
      level += add(tiles.items[i], cost, wanted, out) * repetitions(tiles.items[i]) / config_.threads;
    }
  }

  // Adds a tile in about `wanted` pieces, or as many as pay; returns their cost, the merge included.
  double add(const Item& tile, double cost, double wanted, Work& out) const {
    const int32_t grain = config_.batch_invariant ? kInvariantKeys : kBlockKeys;
    const int32_t first = tile.key_begin / grain, grains = (tile.key_end + grain - 1) / grain - first;
    const double merge_split = plan_.costs_of.merge_float * rows(tile) * (config_.head_dim + 2) * heads(tile);
    const double item = plan_.costs_of.unit(rows(tile), 0) * heads(tile);
    const double most = cost / (kLeastPiece * (item + merge_split));
    auto n = static_cast<int32_t>(std::ceil(std::min({wanted, most, static_cast<double>(grains)})));
    if (config_.batch_invariant && n > 1) n = grains;
    const size_t before = out.items.size();
    Item piece = tile;
    piece.merge = static_cast<int32_t>(out.merges.size());
    for (int32_t i = 1; i <= n; ++i) {
      const int64_t end =
          i < n ? std::min((first + int64_t{grains} * i / n) * grain, last_begin(tile)) : tile.key_end;
      if (end <= piece.key_begin) continue;
      piece.key_end = static_cast<int32_t>(end);
      push(piece, out);
      ++piece.split;
      piece.key_begin = piece.key_end;
    }
    if (piece.split < 2) {
      out.items.resize(before);
      out.costs.resize(before);
      push(tile, out);
      return cost;
    }
    out.merges.push_back({0, piece.split, rows(tile)});
    double sum = merge_split * piece.split;
    for (size_t i = before; i < out.items.size(); ++i) sum += static_cast<double>(out.costs[i]);
    return sum;
  }

  // Where the last piece of a tile begins at the latest: so that what it stores no other piece reads.
  int64_t last_begin(const Item& tile) const {
    const Sequence& s = plan_.sequences[static_cast<size_t>(tile.seq)];
    if (!s.fused || config_.batch_invariant) return tile.key_end;
    return (s.kv_len - s.q_len) / kBlockKeys * kBlockKeys;
  }

  bool last_of_tile(const Item& item) const {
    return item.merge < 0 ||
           item.split + 1 == scratch_.best.merges[static_cast<size_t>(item.merge)].num_splits;
  }

  void decide_stores() {
    std::vector<Item>& items = scratch_.best.items;
    for (const Item& item : items) {
      Sequence& s = plan_.sequences[static_cast<size_t>(item.seq)];
      if (!last_of_tile(item) && item.key_end > s.kv_len - s.q_len) s.fused = false;
    }
    for (Item& item : items) {
      item.stores = plan_.sequences[static_cast<size_t>(item.seq)].fused && last_of_tile(item);
    }
  }

  // The plan's items, from those that stand for all heads.
  void list_heads() {
    const Work& best = scratch_.best;
    plan_.items.clear();
    plan_.costs.clear();
    plan_.merges = best.merges;
    if (best.merges.empty() && best.items.size() > plan_.sequences.size() && list_by_head()) return;
    plan_.items.clear();
    plan_.costs.clear();
    for (size_t i = 0; i < best.items.size(); ++i) list(i, 0, config_.num_kv_heads);
  }

  // The tiles of one sequence and head one after the other, which find the keys and values in a core's cache;
  // the sequence with the longest tile first. False if that could leave a thread without work too early.
  bool list_by_head() {
    const Work& best = scratch_.best;
    std::vector<int32_t>&first = scratch_.first_of_seq, &next = scratch_.next_of_seq,
    &last = scratch_.last_of_seq;
    first.assign(plan_.sequences.size(), -1);
    last.assign(plan_.sequences.size(), -1);
    next.assign(best.items.size(), -1);
    for (size_t i = 0; i < best.items.size(); ++i) {
      const auto seq = static_cast<size_t>(best.items[i].seq);
      (first[seq] < 0 ? first[seq] : next[static_cast<size_t>(last[seq])]) = static_cast<int32_t>(i);
      last[seq] = static_cast<int32_t>(i);
    }
    for (size_t i = 0; i < best.items.size(); ++i) {
      const auto seq = static_cast<size_t>(best.items[i].seq);
      if (first[seq] != static_cast<int32_t>(i)) continue;
      for (int32_t head = 0; head < config_.num_kv_heads; ++head) {
        for (int32_t j = first[seq]; j >= 0; j = next[static_cast<size_t>(j)]) {
          const int32_t together = heads(best.items[static_cast<size_t>(j)]);
          if (head % together == 0)
            list(static_cast<size_t>(j), head, std::min(head + together, config_.num_kv_heads));
        }
      }
    }
    double before = 0, latest = 0;
    for (const float cost : plan_.costs) {
      latest = std::max(latest, before / config_.threads + static_cast<double>(cost));
      before += static_cast<double>(cost);
    }
    return latest <= plan_.unsplit_ns / config_.threads * kGoodEnough;
  }

  // Item i for KV heads [head_begin, head_end).
  void list(size_t i, int32_t head_begin, int32_t head_end) {
    Item item = scratch_.best.items[i];
    const int32_t together = heads(item);
    for (int32_t head = head_begin; head < head_end; head += together) {
      item.kv_head_begin = head;
      item.kv_head_end = std::min(head + together, config_.num_kv_heads);
      plan_.items.push_back(item);
      plan_.costs.push_back(scratch_.best.costs[i] * static_cast<float>(heads(item)) /
                            static_cast<float>(together));
    }
  }

  void place_partials() {
    int64_t floats = 0;
    for (Merge& merge : plan_.merges) {
      merge.partial_offset = floats;
      floats += int64_t{config_.num_kv_heads} * merge.num_splits * merge.rows * (config_.head_dim + 2);
    }
  }

  PlanScratch& scratch_;
  PlanData& plan_;
  const pm_config& config_;
  const int32_t group_, tile_tokens_;
  double share_ = 0;  // ns: of each thread, if nothing was lost
};

}  // namespace

void build_items(PlanScratch& scratch, PlanData& plan) {
  ItemBuilder(scratch, plan).build();
}

}  // namespace pagemill
