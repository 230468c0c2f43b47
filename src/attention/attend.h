// The algorithm, once: for one item, over blocks of keys and its KV heads: scores -> online softmax ->
// accumulate; then normalise and store, or leave a partial result, which the last to finish merges in order.
#pragma once

#include "attention/anchored.h"
#include "attention/item_rows.h"
#include "attention/stage.h"
#include "attention/step.h"
#include "attention/store.h"

namespace pagemill {

template <class Isa, class Verbs, Mma kMma, int kD>
class Attend : ItemRows<Isa, kMma, kD> {
 public:
  static const Item* run(const Step& step, const Item& item, ItemQueue& queue, std::byte* base,
                         int32_t scratch_rows) {
    Attend task(step, item, queue, base, scratch_rows);
    if (queue.at_first()) task.fetch_first();
    task.pack_queries();
    task.compute(item.token_begin, item.token_end, item.key_begin, item.key_end, Fetch::kAhead);
    task.store_before(task.seq_.kv_len);
    if (!task.finish()) {
      task.compute_each_token();
      task.finish();
    }
    return task.next();
  }

 private:
  using Rows = ItemRows<Isa, kMma, kD>;
  using Rows::anchored, Rows::plain_keys;
  using Rows::clear, Rows::fold_split, Rows::take_folded;
  using Rows::kBf16Weights, Rows::kRowBytes, Rows::kNone;
  using Rows::kv_head_of, Rows::token_of, Rows::for_heads, Rows::for_rows;
  using Rows::step_, Rows::item_, Rows::seq_, Rows::dim_, Rows::ldo_, Rows::rows_, Rows::scratch_;

  enum class Fetch { kAhead, kNone };

  Attend(const Step& step, const Item& item, ItemQueue& queue, std::byte* base, int32_t scratch_rows)
      : Rows(step, item, base, scratch_rows),
        queue_(queue),
        verbs_(this->head_rows_, dim_, step.batch_invariant) {}

  const Item* next() {
    if (!took_next_) next_ = queue_.take();
    took_next_ = true;
    return next_;
  }

  int32_t keys_of_block(const Item& item, int32_t tokens) const {
    return Verbs::kStreams && tokens * step_.group > Isa::kTileRows ? chunk_keys(dim_) : item.block_keys;
  }

  // The states of queries [token_begin, token_end) over keys [key_begin, key_end).
  void compute(int32_t token_begin, int32_t token_end, int32_t key_begin, int32_t key_end, Fetch fetch) {
    const int32_t block_keys = keys_of_block(item_, token_end - token_begin);
    for_heads(token_begin, token_end, [&](int row_begin, int row_end) { clear(row_begin, row_end); });
    bool folded = false;
    int32_t begin = key_begin;
    while (begin < key_end) {
      const int32_t block = begin / block_keys * block_keys;
      const int32_t end = key_end - block < block_keys ? key_end : block + block_keys;
      if (step_.batch_invariant && begin > key_begin && begin % kInvariantKeys == 0) {
        for_heads(token_begin, token_end,
                  [&](int row_begin, int row_end) { fold_split(row_begin, row_end, !folded); });
        folded = true;
      }
      Ahead ahead;
      if (fetch == Fetch::kAhead) {
        if (end < key_end) {
          list_keys(seq_, item_, end, key_end - end < block_keys ? key_end : end + block_keys, ahead);
        } else {
          list_next(ahead);
        }
        ahead.begin();
      }
      store_before(end);
      for_heads(token_begin, token_end, [&](int row_begin, int row_end) {
        const Stager<Isa> stager(step_, seq_, kv_head_of(row_begin), scratch_);
        if (row_end - row_begin <= Isa::kTileRows) {
          attend_tile(block, begin, end, row_begin, row_end, stager, ahead);
        } else if constexpr (Verbs::kStreams) {
          attend_chunk(block, begin, end, row_begin, row_end, stager, ahead);
        } else {
          attend_block(block, begin, end, row_begin, row_end, stager, ahead);
        }
      });
      begin = end;
    }
    if (folded) {
      for_heads(token_begin, token_end, [&](int row_begin, int row_end) {
        fold_split(row_begin, row_end, false);
        take_folded(row_begin, row_end);
      });
    }
  }

  // Whether the item begins with keys that lie in the second-level cache since this one met them.
  bool met(const Item& after) const {
    const int64_t bytes =
        int64_t{2} * (item_.key_end - item_.key_begin) * dim_ * dtype_bytes(step_.cache.dtype);
    return after.seq == item_.seq && after.kv_head_begin == item_.kv_head_begin &&
           after.key_begin >= item_.key_begin && after.key_begin < item_.key_end && bytes <= kKeptBytes;
  }

  void list_keys(const Sequence& seq, const Item& item, int32_t begin, int32_t end, Ahead& out) const {
    if (begin < end) list_ahead<Isa>(step_, seq, item.kv_head_begin, item.kv_head_end, begin, end, out);
  }
  void list_first_block(const Item& item, Ahead& out) const {
    const int32_t block_keys = keys_of_block(item, item.token_end - item.token_begin);
    const int32_t end = item.key_begin / block_keys * block_keys + block_keys;
    list_keys(step_.sequences[item.seq], item, item.key_begin, item.key_end < end ? item.key_end : end, out);
  }

  // What is wanted after the item's last block: where its results go, the next item's queries and keys. With
  // tile products the first two were tried and are no faster.
  void list_next(Ahead& out) {
    const Item* after = next();
    if (!Verbs::kStreams && item_.token_end - item_.token_begin > 1) {
      list_tokens(step_, step_.out, step_.out_dtype, item_, out);
      if (after) list_tokens(step_, step_.q, step_.dtype, *after, out);
    }
    if (after && !met(*after)) list_first_block(*after, out);
  }

  // Inline, since GCC leaves out calls of a function that does nothing but fetch.
  PM_INLINE void fetch_first() {
    Ahead own;
    list_first_block(item_, own);
    own.begin();
    while (!own.done()) own.template step<Ahead::kMostStreams>();
  }

  // The sequence's new tokens, if the item stores them, when their block has its turn and was fetched.
  PM_INLINE void store_before(int32_t key_end) {
    if (!stored_ && key_end > seq_.kv_len - seq_.q_len) store_new();
  }
  PM_NOINLINE void store_new() {
    stored_ = true;
    for (int32_t head = item_.kv_head_begin; head < item_.kv_head_end; ++head) {
      store_tokens<Isa>(step_, seq_, head, 0, seq_.q_len, scratch_.raw);
    }
  }

  // A tile of rows, the groups of a block that it sees, and where its scores and weights lie.
  struct RowTile {
    int row = 0, rows = 0, first = 0, groups = 0;
    float* s = nullptr;
    uint16_t* p = nullptr;
  };
  struct KeyBlock {
    int32_t block, begin, end;  // keys
    const Block& places;
  };

  // A single tile of rows: done with the block's keys before it turns to the values, which are packed in
  // their place. Both would not fit the first-level cache.
  void attend_tile(int32_t block, int32_t begin, int32_t end, int row_begin, int row_end,
                   const Stager<Isa>& stager, Ahead& ahead) {
    Block places;
    const KeyBlock keys{block, begin, end, places};
    const RowTile tile = row_tile(keys, row_begin, row_end);
    if (tile.groups == 0) return;
    const int first = (begin - block) / kGroupKeys, last = (end - block + kGroupKeys - 1) / kGroupKeys;
    if constexpr (Verbs::kFromRows > 0) {
      const CacheView& c = step_.cache;
      const bool as_it_lies =
          is_f8(c.dtype) ? step_.vbmi : c.layout != PM_TILES && dim_ % Verbs::kFromRowsDims == 0;
      if (tile.rows <= Verbs::kFromRows && as_it_lies) {
        attend_few(keys, tile, stager, places, ahead);
        return;
      }
    }
    stager.load_keys(block, begin, end, places, ahead);
    Ahead* prefetch = ahead.num_chunks > 0 ? &ahead : nullptr;
    verbs_.pair_keys(places.k, first, last);
    scores(keys, tile, prefetch);
    weigh(keys, tile);
    stager.load_values(block, begin, end, scratch_.k, places, ahead);
    verbs_.pair_values(places.v, first, last, dim_, pairs());
    accumulate(keys, tile, prefetch);
  }

  // So few rows that keys and values are multiplied as rows or as fp8.
  void attend_few(const KeyBlock& keys, const RowTile& tile, const Stager<Isa>& stager, Block& places,
                  Ahead& ahead) {
    const int64_t ldq = int64_t{dim_} * kRowBytes;
    const std::byte *q = scratch_.q + tile.row * ldq, *p = reinterpret_cast<std::byte*>(tile.p);
    float* o = scratch_.o + int64_t{tile.row} * ldo_;
    const pm_dtype dtype = step_.cache.dtype;
    if (is_f8(dtype)) {
      stager.list_f8(keys.block, keys.begin, keys.end, places, ahead);
      verbs_.scores_from_f8(q, ldq, tile.rows, dtype, places.k + tile.first, tile.groups, dim_, tile.s,
                            ahead);
      weigh(keys, tile);
      verbs_.accumulate_from_f8(p, tile.rows, dtype, places.v + tile.first, tile.groups, dim_, o, ahead);
      return;
    }
    BlockRows rows;
    stager.list_rows(keys.block, keys.begin, keys.end, rows);
    const int64_t key = tile.first * kGroupKeys;
    verbs_.template scores_from_rows<kD>(q, ldq, tile.rows, rows.k + key, tile.groups, dim_, tile.s,
                                         step_.batch_invariant, ahead);
    weigh(keys, tile);
    verbs_.template accumulate_from_rows<kD>(p, tile.rows, rows.v + key, tile.groups, dim_, o, ahead);
  }

  void attend_block(int32_t block, int32_t begin, int32_t end, int row_begin, int row_end,
                    const Stager<Isa>& stager, Ahead& ahead) {
    Block places;
    stager.load(block, begin, end, scratch_.v, places, ahead);
    const KeyBlock keys{block, begin, end, places};
    for (int row = row_begin; row < row_end; row += Isa::kTileRows) {
      const RowTile tile = row_tile(keys, row, row_end);
      if (tile.groups == 0) continue;
      Ahead* prefetch = ahead.done() ? nullptr : &ahead;
      scores(keys, tile, prefetch);
      weigh(keys, tile);
      accumulate(keys, tile, prefetch);
    }
  }

  RowTile row_tile(const KeyBlock& keys, int row, int row_end) const {
    const int rows = row_end - row < Isa::kTileRows ? row_end - row : Isa::kTileRows;
    Range seen = visible_keys(seq_, step_.window, token_of(row), token_of(row + rows - 1) + 1);
    if (seen.begin < keys.begin) seen.begin = keys.begin;
    if (seen.end > keys.end) seen.end = keys.end;
    if (seen.begin >= seen.end) return {};
    const int groups = verbs_.unit_groups(), unit = groups * kGroupKeys;
    const int first = (seen.begin - keys.block) / unit, last = (seen.end - keys.block + unit - 1) / unit;
    return {row, rows, first * groups, (last - first) * groups, scratch_.s, scratch_.p};
  }

  // Where pairs of values are put side by side: behind those that are staged.
  std::byte* pairs() const { return scratch_.v + int64_t{chunk_keys(dim_)} * padded_dim(dim_) * 2; }

  // What TileStream asks of the softmax between its products.
  struct StreamSoftmax {
    using Granule = typename Verbs::template Stream<kD>::Granule;
    Attend& task;
    const KeyBlock& keys;
    Ahead& ahead;
    int row = -1;           // the tile's first
    Range plain{0, 0};      // keys that all its rows see, if no score is transformed
    bool anchored = false;  // all its rows have a maximum
    bool is_plain = false;  // the granule at work

    PM_INLINE void fetch() {
      if (ahead.done()) return;
      for (int i = 0; i < 4; ++i) ahead.step<4>();
    }
    PM_INLINE void weigh(const Granule& g, int begin, int end) {
      if (begin == 0) look_at(g);
      if (is_plain) {
        const int first = g.row + begin;
        begin += weigh_plain_granules<Isa>(task.scratch_.s + begin * kGranuleKeys, kGranuleKeys,
                                           task.step_.scale * kLog2e, end - begin, task.scratch_.m + first,
                                           task.scratch_.l + first * kGroupKeys,
                                           g.p + begin * kBlockKeys + g.index * kGranuleKeys, kBlockKeys);
      }
      if (begin < end) weigh_any(g, begin, end);
    }
    void look_at(const Granule& g) {
      if (g.row != row) {
        row = g.row;
        plain = task.plain_keys(g.row, g.rows);
        anchored = task.anchored(g.row, g.rows);
      }
      is_plain = plain.begin <= g.key && g.key + kGranuleKeys <= plain.end;
      if (!is_plain || anchored) return;
      anchor_plain_granules<Isa>(task.scratch_.s, task.step_.scale * kLog2e, g.rows, task.scratch_.m + g.row);
      is_plain = anchored = task.anchored(g.row, g.rows);
    }
    PM_NOINLINE void weigh_any(const Granule& g, int begin, int end) {
      const int32_t column = g.index * kGranuleKeys;
      task.for_rows(g.row + begin, g.row + end, g.key, [&](int of_item, Range seen, const ScoreTransform& t) {
        const int r = of_item - g.row;
        task.weigh_granule_of(of_item, task.scratch_.s + r * kGranuleKeys, task.inside(seen, keys, g.key), t,
                              g.p + r * kBlockKeys + column, column);
      });
      if (end == g.rows) anchored = task.anchored(g.row, g.rows);
    }
    bool unit_ends(const Granule&) const { return task.raised_; }
    void scale_sums(const Granule& g) { task.scale_sums(g.row, g.rows); }
  };

  // Tiles of rows one after the other, each against all keys of the chunk.
  void attend_chunk(int32_t block, int32_t begin, int32_t end, int row_begin, int row_end,
                    const Stager<Isa>& stager, Ahead& ahead) {
    Block places;
    stager.load(block, begin, end, scratch_.v, places, ahead);
    const int first_group = (begin - block) / kGroupKeys;
    const int last_group = (end - block + kGroupKeys - 1) / kGroupKeys;
    verbs_.pair_keys(places.k, first_group, last_group);
    verbs_.pair_values(places.v, first_group, last_group, dim_, pairs());
    const KeyBlock keys{block, begin, end, places};
    StreamSoftmax softmax{*this, keys, ahead};
    typename Verbs::template Stream<kD> stream(verbs_, dim_, scratch_.s);
    int units = 0;
    for (int row = row_begin; row < row_end; row += Isa::kTileRows) {
      const RowTile tile = row_tile(keys, row, row_end);
      const int granules = tile.groups / 2;
      for (int unit = 0; unit < granules; unit += kUnitGranules) {
        const int count = granules - unit < kUnitGranules ? granules - unit : kUnitGranules;
        uint16_t* p = scratch_.p + units++ % 2 * (kMaxTileRows * kBlockKeys);
        for (int i = 0; i < count; ++i) {
          const int group = tile.first + 2 * (unit + i);
          stream.push({scratch_.q + int64_t{row} * dim_ * kRowBytes, places.k + group,
                       places.v + tile.first + 2 * unit, p, scratch_.o + int64_t{row} * ldo_, tile.rows, i,
                       count, row, block + group * kGroupKeys},
                      softmax);
        }
      }
    }
    stream.finish(softmax);
  }

  void weigh_granule_of(int row, float* s, Range seen, const ScoreTransform& transform, uint16_t* weights,
                        int before) {
    float keep = 1.0f;
    const AnchoredRow state{scratch_.m + row, scratch_.l + row * kGroupKeys, &keep};
    weigh_any_granule<Isa>(s, seen.begin, seen.end, transform, state, weights, before);
    if (keep == 1.0f) return;
    if (!raised_)
      for (int i = 0; i < kMaxTileRows; ++i) scratch_.keep[i] = 1.0f;
    raised_ = true;
    scratch_.keep[row % kMaxTileRows] *= keep;
  }
  // Before weights that were made after a raise meet their values.
  void scale_sums(int row, int rows) {
    for (int r = row; r < row + rows; ++r) {
      const auto keep = Isa::set1(scratch_.keep[r % kMaxTileRows]);
      float* o = scratch_.o + int64_t{r} * ldo_;
      for (int d = 0; d < ldo_; d += Isa::kLanes) Isa::store(o + d, Isa::mul(Isa::load(o + d), keep));
    }
    raised_ = false;
  }

  void scores(const KeyBlock& keys, const RowTile& t, Ahead* prefetch) {
    verbs_.template scores<kD>(scratch_.q + int64_t{t.row} * dim_ * kRowBytes, int64_t{dim_} * kRowBytes,
                               t.rows, keys.places.k + t.first, t.groups, dim_, t.s, prefetch);
  }

  void accumulate(const KeyBlock& keys, const RowTile& t, Ahead* prefetch) {
    const std::byte* weights =
        kBf16Weights ? reinterpret_cast<std::byte*>(t.p) : reinterpret_cast<std::byte*>(t.s);
    verbs_.template accumulate<kD>(weights, t.rows, keys.places.v + t.first, t.groups, dim_,
                                   scratch_.o + int64_t{t.row} * ldo_, prefetch);
  }

  // What is visible of a block, as columns of which the first is `key`.
  Range inside(Range seen, const KeyBlock& keys, int32_t key) const {
    if (seen.begin < keys.begin) seen.begin = keys.begin;
    if (seen.end > keys.end) seen.end = keys.end;
    return {seen.begin - key, seen.end - key};
  }

  // Scores to weights of a tile.
  void weigh(const KeyBlock& keys, const RowTile& tile) {
    const int32_t key = keys.block + tile.first * kGroupKeys;  // of column 0
    const int columns = tile.groups * kGroupKeys;
    if constexpr (Verbs::kStreams) {
      const Range plain = inside(plain_keys(tile.row, tile.rows), keys, key);
      for (int c = 0; c < columns; c += kGranuleKeys) weigh_granule(keys, tile, key, c, plain);
      if (raised_) scale_sums(tile.row, tile.rows);
      return;
    }
    for_rows(tile.row, tile.row + tile.rows, key, [&](int row, Range seen, const ScoreTransform& transform) {
      const int r = row - tile.row;
      const Range visible = inside(seen, keys, key);
      float* s = tile.s + r * kBlockKeys;
      uint16_t* p = tile.p + r * kBlockKeys;
      const RowState state{scratch_.o + int64_t{row} * ldo_, scratch_.m + row, scratch_.l + row * kGroupKeys};
      if constexpr (kBf16Weights) {
        softmax_row<Isa, true>(s, columns, visible.begin, visible.end, transform, ldo_, state, p);
      } else {
        softmax_row<Isa, false>(s, columns, visible.begin, visible.end, transform, ldo_, state, s);
      }
    });
  }

  // Columns [column, column + kGranuleKeys) of a tile of which column 0 is `key`; those of `plain` are plain.
  void weigh_granule(const KeyBlock& keys, const RowTile& tile, int32_t key, int column, Range plain) {
    const int32_t first = key + column;
    float* s = tile.s + column;
    uint16_t* p = tile.p + column;
    int done = 0;
    if (plain.begin <= column && column + kGranuleKeys <= plain.end && anchored(tile.row, tile.rows)) {
      done = weigh_plain_granules<Isa>(s, kBlockKeys, step_.scale * kLog2e, tile.rows, scratch_.m + tile.row,
                                       scratch_.l + tile.row * kGroupKeys, p, kBlockKeys);
    }
    if (done == tile.rows) return;
    for_rows(tile.row + done, tile.row + tile.rows, first, [&](int row, Range seen, const ScoreTransform& t) {
      const int64_t at = int64_t{row - tile.row} * kBlockKeys;
      weigh_granule_of(row, s + at, inside(seen, keys, first), t, p + at, column);
    });
  }

  // A value that is not finite has met the zero weight of a query that does not see it: with one token at a
  // time the stage holds only what that token sees.
  PM_NOINLINE void compute_each_token() {
    for (int32_t token = item_.token_begin; token < item_.token_end; ++token) {
      Range seen = visible_keys(seq_, step_.window, token);
      if (seen.begin < item_.key_begin) seen.begin = item_.key_begin;
      if (seen.end > item_.key_end) seen.end = item_.key_end;
      compute(token, token + 1, seen.begin, seen.end, Fetch::kNone);
    }
  }

  ItemQueue& queue_;
  const Item* next_ = nullptr;
  bool took_next_ = false;
  bool stored_ = !(item_.stores && step_.fuse);
  bool raised_ = false;  // Scratch::keep holds factors of the rows at work
  const Verbs verbs_;
};

}  // namespace pagemill
