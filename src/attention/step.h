// What the kernels of one run read: plain data, no ownership.
#pragma once

#include <pagemill/pagemill.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pagemill {

constexpr int kGroupKeys = 16;  // keys of one group of a compute layout, as in PM_TILES
constexpr int kBlockKeys =
    128;  // keys whose weights meet their values together; blocks lie at multiples of it
constexpr int kBlockGroups = kBlockKeys / kGroupKeys;
constexpr int kGranuleKeys = 2 * kGroupKeys;  // keys of one tile product
constexpr int kUnitGranules = 4;              // whose weights meet their values together
// The most keys that a tile of rows meets before the next one has its turn, with tile products.
constexpr int kChunkKeys = 512;
constexpr int kInvariantKeys = 1024;  // batch-invariant mode: partial results end at multiples of it
constexpr int kMaxHeadDim = 512;
constexpr int kMaxGroup = 128;  // G

constexpr bool is_f8(pm_dtype dtype) {
  return dtype == PM_F8E4M3 || dtype == PM_F8E5M2;
}
constexpr int64_t dtype_bytes(pm_dtype dtype) {
  return dtype == PM_F32 ? 4 : is_f8(dtype) ? 1 : 2;
}
// What keys and values of a cache are multiplied in: fp8 is widened first, which is exact.
constexpr pm_dtype computing_dtype(pm_dtype cache_dtype) {
  return is_f8(cache_dtype) ? PM_BF16 : cache_dtype;
}

struct Sequence {
  int64_t page_bias;       // logical page p of the sequence is Step::pages[page_bias + p]
  int32_t query_begin;     // row of its first query in q
  int32_t q_len, kv_len;   // tokens
  int32_t first_position;  // of its first query
  bool causal;
  bool fused;  // its new tokens are stored by the items that attend to them
};

// A tile of queries of one sequence against a range of its keys, for a range of KV heads.
struct Item {
  int32_t seq;
  int32_t kv_head_begin, kv_head_end;
  int32_t token_begin, token_end;  // queries of the sequence
  int32_t key_begin, key_end;      // key_end > key_begin unless nothing is visible
  int32_t block_keys;              // keys that all its heads meet before the next ones
  int32_t merge;                   // index into Step::merges, or -1
  int32_t split;                   // which of the merge's splits this is
  bool stores;                     // stores the sequence's new tokens before it reads them
};

// The splits of one tile. Partial results are f32 records [K, num_splits, rows, D + 2]: O, m, l.
struct Merge {
  int64_t partial_offset;  // floats
  int32_t num_splits, rows;
};

struct Tensor {
  std::byte* data;
  int64_t stride_token, stride_head;  // elements
};

struct CacheView {
  std::byte* k;
  std::byte* v;
  int64_t k_page, k_token, k_head;  // strides in elements
  int64_t v_page, v_token, v_head;
  pm_dtype dtype;
  pm_layout layout;  // PM_NO_CACHE: rows, one endless page that begins at the sequence's first token
  int32_t page_size;
};

struct Window {
  int64_t left, right;  // keys seen before and after the position; "no bound" is a number beyond any length
};

struct Step {
  int32_t num_heads, num_kv_heads, group, head_dim;  // H, K, G, D
  pm_dtype dtype, out_dtype;
  Tensor q, k_new, v_new, out;
  float* lse;
  int64_t lse_stride;
  CacheView cache;
  Window window;
  const Sequence* sequences;
  const int32_t* pages;
  const Merge* merges;
  std::atomic<int32_t>* arrivals;  // [merges, K] finished splits, counted at an item's first head
  float* partials;
  float scale;  // scale * q_scale * k_scale
  float soft_cap, k_scale, v_scale;
  const float* sinks;
  const float* alibi_slopes;
  bool batch_invariant;
  bool fuse;          // items that can store their new tokens do so
  bool vbmi;          // the CPU has AVX512_VBMI
  bool many_streams;  // Ahead::many_streams
};

struct Range {
  int32_t begin, end;
};

// Keys that query `token` of the sequence sees: [begin, end), begin <= end.
inline Range visible_keys(const Sequence& s, const Window& w, int32_t token) {
  const int64_t position = int64_t{s.first_position} + token;
  int64_t end = s.kv_len;
  if (s.causal && position + 1 < end) end = position + 1;
  if (position + w.right + 1 < end) end = position + w.right + 1;
  if (end < 0) end = 0;
  int64_t begin = position - w.left;
  if (begin < 0) begin = 0;
  if (begin > end) begin = end;
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

// Keys that any of the queries [token_begin, token_end) sees.
inline Range visible_keys(const Sequence& s, const Window& w, int32_t token_begin, int32_t token_end) {
  return {visible_keys(s, w, token_begin).begin,
          visible_keys(s, w, token_end - 1).end};  // both rise with the token
}

// The memory that one task works in; carved by scratch_layout.
struct Scratch {
  std::byte* q;    // [rows, D] bf16 or f32
  float* s;        // [kMaxTileRows, kBlockKeys] scores, then f32 weights, of a tile of rows
  uint16_t* p;     // [2, kMaxTileRows, kBlockKeys] bf16 weights of units that take turns
  float* o;        // [rows, D'] f32, D' = D rounded up to 16
  float* m;        // [rows] log2 units
  float* l;        // [rows, 16] partial sums
  float* acc;      // [rows, D' + 2] what earlier invariant splits gave: O, m, l
  float* keep;     // [kMaxTileRows] what rows of o are still to be scaled by
  std::byte* k;    // [kBlockKeys * D] f32 or [chunk_keys * D] bf16 staged keys
  std::byte* v;    // [kBlockKeys * D] f32 or [2, chunk_keys * D] bf16 staged values
  std::byte* raw;  // [16, D] f32: new rows on their way into a group, groups of fp8 on theirs to k and v
};

constexpr int kMaxTileRows = 32;  // query rows that share a pass over a block of keys
constexpr int kSpareRows = 15;    // past the last row of q and o: tile registers read 16 at a time
constexpr int padded_dim(int head_dim) {
  return (head_dim + 15) / 16 * 16;
}

// Keys and values of a chunk stay in the second-level cache while rows meet them.
constexpr int chunk_keys(int head_dim) {
  return head_dim <= 128 ? kChunkKeys : head_dim <= 256 ? kChunkKeys / 2 : kBlockKeys;
}

// Carves `base` (64-byte aligned; null to measure) for items of up to `rows` rows; returns the bytes used.
inline size_t scratch_layout(std::byte* base, int rows, int head_dim, bool invariant, Scratch& out) {
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    std::byte* p = base ? base + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return p;
  };
  const size_t d = static_cast<size_t>(padded_dim(head_dim)), n = static_cast<size_t>(rows);
  out.q = take((n + kSpareRows) * d * 4);
  out.s = reinterpret_cast<float*>(take(kMaxTileRows * kBlockKeys * 4));
  out.p = reinterpret_cast<uint16_t*>(take(2 * kMaxTileRows * kBlockKeys * 2));
  out.o = reinterpret_cast<float*>(take((n + kSpareRows) * d * 4));
  out.m = reinterpret_cast<float*>(take(n * 4));
  out.l = reinterpret_cast<float*>(take(n * 16 * 4));
  out.acc = reinterpret_cast<float*>(take(invariant ? n * (d + 2) * 4 : 0));
  out.keep = reinterpret_cast<float*>(take(kMaxTileRows * 4));
  const auto chunk = static_cast<size_t>(chunk_keys(head_dim));
  out.k = take((chunk * 2 > kBlockKeys * 4 ? chunk * 2 : kBlockKeys * 4) * d);
  out.v = take(2 * chunk * d * 2);
  out.raw = take(16 * d * 4);
  return used;
}

// Items with few query rows take all KV heads of a key range, or as many as fit: the heads of a page are
// neighbours in memory, and one core reads pieces of 64 KiB in random order at 24.6 GB/s but pieces of 8 KiB,
// those of one head, at 20.5 (Zen 4, 28 in sequence). Their blocks are shorter, so that what is read and what
// is fetched ahead fit the second-level cache together.
constexpr int kSharedBlockBytes = 256 * 1024;
constexpr int kKeptBytes = 512 * 1024;  // of keys and values that are still there for the next item
constexpr int kSharedRows = 256;        // of all heads together
// From here on products bind, and blocks twice as long spare a part of the softmax: 4% of the time of 16 rows
// a head, 6% of 12; with 4 and 8 rows, which wait for memory, they take 6% longer.
constexpr int kManyRows = 12;
inline int shared_block_keys(pm_layout layout, int page_size, bool many_rows, bool invariant) {
  if (invariant) return kBlockKeys;
  if (layout == PM_TILES) return many_rows ? kBlockKeys : 64;
  return page_size < kGroupKeys ? 32 : 16;  // MBU 0.77 with pages of 16, and 0.70 with 32 keys, 0.66 with 64
}
inline int heads_together(int rows, int num_kv_heads, int head_dim, int64_t element, int block_keys) {
  if (rows > kMaxTileRows) return 1;
  const int64_t bytes = 2 * block_keys * head_dim * element;
  const int64_t most =
      kSharedBlockBytes / bytes < kSharedRows / rows ? kSharedBlockBytes / bytes : kSharedRows / rows;
  return most < 1 ? 1 : most < num_kv_heads ? static_cast<int>(most) : num_kv_heads;
}

constexpr int32_t kItemRows = 192;
// Query tokens of one item, of which an ISA has `rows` with D up to 128: enough to pay for packing keys, few
// enough for the second-level cache.
inline int tile_tokens(int group, int head_dim, int rows) {
  rows = head_dim <= 128 ? rows : head_dim <= 256 ? rows * 2 / 3 : rows / 2;
  return rows > group ? rows / group : 1;
}

// The items of a step, each of which one thread takes; a queue for each thread.
class ItemQueue {
 public:
  ItemQueue(const Item* items, size_t num_items, std::atomic<size_t>& taken)
      : items_(items), num_items_(num_items), taken_(taken) {}

  // Null when none is left.
  const Item* take() {
    ++taken_here_;
    const size_t i = taken_.fetch_add(1, std::memory_order_relaxed);
    return i < num_items_ ? items_ + i : nullptr;
  }
  // Whether the thread is at its first item, of which no item before has fetched anything.
  bool at_first() const { return taken_here_ == 1; }

 private:
  const Item* items_;
  size_t num_items_;
  std::atomic<size_t>& taken_;
  size_t taken_here_ = 0;
};

// The kernels' signatures. An attend returns what it took from the queue to work on next: it takes it when
// its own last block begins, to fetch the next item's first keys beside that block; no earlier, or idle
// threads would miss it.
using AttendFn = const Item* (*)(const Step&, const Item&, ItemQueue&, std::byte* scratch,
                                 int32_t scratch_rows);
// Stores queries [token_begin, token_end) of the sequence for one KV head.
using StoreFn = void (*)(const Step&, const Sequence&, int32_t kv_head, int32_t token_begin,
                         int32_t token_end, std::byte* raw);

}  // namespace pagemill
