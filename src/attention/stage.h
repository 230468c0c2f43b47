// A block of keys and values as the matrix verbs read it: pointers straight into the cache where a whole
// group of 16 visible keys lies there in the computing dtype, packed into scratch otherwise.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "attention/convert_row.h"
#include "attention/step.h"

namespace pagemill {

struct Block {
  const std::byte* k[kChunkKeys / kGroupKeys];
  const std::byte* v[kChunkKeys / kGroupKeys];
};
// The same as rows, one for each key.
struct BlockRows {
  const std::byte* k[kBlockKeys];
  const std::byte* v[kBlockKeys];
};

// Where key `key` of the sequence lies for one KV head (its group, for PM_TILES: key a multiple of 16).
struct KeyPlace {
  const std::byte* k;
  const std::byte* v;
};

PM_INLINE KeyPlace place_of(const Step& step, const Sequence& seq, int32_t kv_head, int32_t key) {
  const CacheView& c = step.cache;
  int64_t page = 0, slot = int64_t{seq.query_begin} + key;
  if (c.layout != PM_NO_CACHE) {
    page = step.pages[seq.page_bias + key / c.page_size];
    slot = key % c.page_size;
  }
  const int64_t k_token = c.layout == PM_TILES ? step.head_dim : c.k_token;
  const int64_t v_token = c.layout == PM_TILES ? step.head_dim : c.v_token;
  const int64_t element = dtype_bytes(c.dtype);
  return {c.k + (page * c.k_page + kv_head * c.k_head + slot * k_token) * element,
          c.v + (page * c.v_page + kv_head * c.v_head + slot * v_token) * element};
}

// Keys of the layouts PM_ROWS and PM_NO_CACHE one after the other, without a division or product for each.
class RowWalk {
 public:
  PM_INLINE RowWalk(const Step& step, const Sequence& seq, int32_t kv_head, int32_t key)
      : cache_(step.cache), element_(dtype_bytes(step.cache.dtype)), kv_head_(kv_head) {
    if (cache_.layout == PM_NO_CACHE) {
      left_ = std::numeric_limits<int32_t>::max();
      turn_to(0, int64_t{seq.query_begin} + key);
      return;
    }
    const int32_t slot = key % cache_.page_size;
    next_page_ = step.pages + seq.page_bias + key / cache_.page_size;
    left_ = cache_.page_size - slot;
    turn_to(*next_page_++, slot);
  }

  PM_INLINE KeyPlace next() {
    if (left_ == 0) {
      left_ = cache_.page_size;
      turn_to(*next_page_++, 0);
    }
    --left_;
    const KeyPlace place = at_;
    at_.k += cache_.k_token * element_;
    at_.v += cache_.v_token * element_;
    return place;
  }

 private:
  PM_INLINE void turn_to(int64_t page, int64_t slot) {
    at_ = {cache_.k + (page * cache_.k_page + kv_head_ * cache_.k_head + slot * cache_.k_token) * element_,
           cache_.v + (page * cache_.v_page + kv_head_ * cache_.v_head + slot * cache_.v_token) * element_};
  }

  const CacheView& cache_;
  const int64_t element_, kv_head_;
  KeyPlace at_;
  int32_t left_;                        // tokens of the page from `at_` on
  const int32_t* next_page_ = nullptr;  // entry of the page table
};

// What a block of keys lies in, for KV heads [head_begin, head_end): chunks in the order of memory, as far as
// the strides tell it.
class AheadList {
 public:
  explicit AheadList(Ahead& out) : out_(out) {}

  // rows x columns pieces of `bytes` each at the strides given (bytes), of K and of V.
  struct Pieces {
    const std::byte* at;
    int64_t rows, row_stride, columns, column_stride, bytes;
    // In the order of memory; pieces that touch, or are no farther apart than they are long, become one: K
    // and V, token by token or head by head.
    void join() {
      if (row_stride < column_stride) {
        std::swap(rows, columns);
        std::swap(row_stride, column_stride);
      }
      if (column_stride <= 2 * bytes) {
        bytes += (columns - 1) * column_stride;
        columns = 1;
      }
      if (columns == 1 && row_stride == bytes) {
        bytes *= rows;
        rows = 1;
      }
    }
  };
  PM_INLINE void add(Pieces k, Pieces v) {
    k.join();
    v.join();
    const bool single = k.columns == 1 && v.columns == 1 && k.rows == v.rows;
    const int64_t both = k.bytes + v.bytes;
    if (single && v.at == k.at + k.bytes &&
        (k.rows == 1 || (k.row_stride == both && v.row_stride == both))) {  // they fill their rows
      add_chunk(k.at, k.rows * both);
      return;
    }
    const int64_t apart = v.at > k.at ? v.at - k.at : k.at - v.at;
    if (apart >= k.row_stride || k.rows != v.rows) {
      for (int64_t i = 0; i < k.rows; ++i) add_row(k, i);
      for (int64_t i = 0; i < v.rows; ++i) add_row(v, i);
    } else {
      for (int64_t i = 0; i < k.rows; ++i) {
        add_row(k, i);
        add_row(v, i);
      }
    }
  }

  void add_tokens(const std::byte* at, int64_t tokens, int64_t stride, int64_t bytes) {
    for (int64_t i = 0; i < tokens; ++i) add_chunk(at + i * stride, bytes);
  }

 private:
  PM_INLINE void add_row(const Pieces& p, int64_t i) {
    const std::byte* at = p.at + i * p.row_stride;
    for (int64_t j = 0; j < p.columns; ++j) add_chunk(at + j * p.column_stride, p.bytes);
  }
  PM_INLINE void add_chunk(const std::byte* at, int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(at), end = address + static_cast<uintptr_t>(bytes);
    const std::byte* first = at - address % 64;
    auto lines = static_cast<int32_t>((end - address / 64 * 64 + 63) / 64);
    const int32_t most = out_.many_streams ? Ahead::kStreamLines : std::numeric_limits<int32_t>::max();
    if (out_.num_chunks > 0) {
      Ahead::Chunk& last = out_.chunks[out_.num_chunks - 1];
      const std::byte* last_end = last.at + int64_t{last.lines} * 64;
      if (first >= last.at && first <= last_end) {
        lines -= static_cast<int32_t>((last_end - first) / 64);
        first = last_end;
        const int32_t more = std::clamp(lines, 0, most - last.lines);
        last.lines += more;
        first += more * 64;
        lines -= more;
      }
    }
    while (lines > 0 && out_.num_chunks < Ahead::kMostChunks) {
      const int32_t here = std::min(lines, most);
      out_.chunks[out_.num_chunks++] = {first, here, 1};
      first += int64_t{here} * 64;
      lines -= here;
    }
  }

  Ahead& out_;
};

template <class Isa>
PM_NOINLINE void list_ahead(const Step& step, const Sequence& seq, int32_t head_begin, int32_t head_end,
                            int32_t begin, int32_t end, Ahead& out) {
  const CacheView& c = step.cache;
  const int64_t element = dtype_bytes(c.dtype), row_bytes = step.head_dim * element;
  const int64_t heads = head_end - head_begin;
  out.many_streams = step.many_streams;
  AheadList list(out);
  if (c.layout == PM_TILES) begin = begin / kGroupKeys * kGroupKeys;
  while (begin < end) {
    int32_t stop = end;
    if (c.layout != PM_NO_CACHE) {
      const int32_t page_end = (begin / c.page_size + 1) * c.page_size;
      if (page_end < stop) stop = page_end;
    }
    const KeyPlace place = place_of(step, seq, head_begin, begin);
    const int64_t keys = stop - begin;
    // The stride of a single key or head may be any number.
    const auto bytes_of = [&](int64_t stride, int64_t count) { return count > 1 ? stride * element : 0; };
    if (c.layout == PM_TILES) {
      const int64_t bytes = (keys + kGroupKeys - 1) / kGroupKeys * kGroupKeys * row_bytes;
      list.add({place.k, heads, bytes_of(c.k_head, heads), 1, 0, bytes},
               {place.v, heads, bytes_of(c.v_head, heads), 1, 0, bytes});
    } else {
      list.add({place.k, keys, bytes_of(c.k_token, keys), heads, bytes_of(c.k_head, heads), row_bytes},
               {place.v, keys, bytes_of(c.v_token, keys), heads, bytes_of(c.v_head, heads), row_bytes});
    }
    begin = stop;
  }
}

// What of q or out belongs to the item, if its heads are neighbours.
inline void list_tokens(const Step& step, const Tensor& tensor, pm_dtype dtype, const Item& item,
                        Ahead& out) {
  if (tensor.stride_head != step.head_dim) return;
  const int64_t element = dtype_bytes(dtype), row = step.group * step.head_dim;
  const int64_t token = int64_t{step.sequences[item.seq].query_begin} + item.token_begin;
  AheadList(out).add_tokens(tensor.data + (token * tensor.stride_token + item.kv_head_begin * row) * element,
                            item.token_end - item.token_begin, tensor.stride_token * element,
                            (item.kv_head_end - item.kv_head_begin) * row * element);
}

// Copies of a group of PM_TILES with the slots outside [begin, end) zero, so that a NaN there meets no
// product.
template <class Isa>
PM_NOINLINE void copy_visible_keys(const std::byte* from, int head_dim, int64_t element, int begin, int end,
                                   std::byte* to) {
  uint32_t mask[kGroupKeys];
  for (int t = 0; t < kGroupKeys; ++t) mask[t] = t >= begin && t < end ? ~0u : 0u;
  const auto* src = reinterpret_cast<const uint32_t*>(from);
  auto* dst = reinterpret_cast<uint32_t*>(to);
  const int words = head_dim * static_cast<int>(element) / 4;
  for (int i = 0; i < words; ++i) {
    for (int t = 0; t < kGroupKeys; ++t) dst[i * kGroupKeys + t] = src[i * kGroupKeys + t] & mask[t];
  }
}

template <class Isa>
PM_NOINLINE void copy_visible_values(const std::byte* from, int head_dim, int64_t element, int begin, int end,
                                     std::byte* to) {
  const int bits = static_cast<int>(8 * element), pack = 32 / bits;
  const auto* src = reinterpret_cast<const uint32_t*>(from);
  auto* dst = reinterpret_cast<uint32_t*>(to);
  for (int t = 0; t < kGroupKeys; t += pack, src += head_dim, dst += head_dim) {
    uint32_t mask = 0;
    for (int i = 0; i < pack; ++i) {
      if (t + i >= begin && t + i < end) mask |= ~0u >> (32 - bits) << (i * bits);
    }
    for (int d = 0; d < head_dim; ++d) dst[d] = src[d] & mask;
  }
}

template <class Isa>
class Stager {
 public:
  Stager(const Step& step, const Sequence& seq, int32_t kv_head, const Scratch& scratch)
      : step_(step), seq_(seq), kv_head_(kv_head), scratch_(scratch) {}

  // The rows of the groups that hold keys of [begin, end), for layouts other than PM_TILES; zeros for other
  // keys.
  PM_NOINLINE void list_rows(int32_t block, int32_t begin, int32_t end, BlockRows& out) const {
    for_groups(block, begin, end, [&](int32_t key, int first, int last, int32_t g) PM_INLINE_LAMBDA {
      rows_of(key, first, last, out.k + g * kGroupKeys, out.v + g * kGroupKeys);
    });
  }

  // Groups of fp8, as PM_TILES has them; zeros for other keys.
  PM_NOINLINE void list_f8(int32_t block, int32_t begin, int32_t end, Block& out, Ahead& ahead) const {
    for_groups(block, begin, end, [&](int32_t key, int first, int last, int32_t g) PM_INLINE_LAMBDA {
      if (step_.cache.layout == PM_TILES) {
        tile(key, first, last, g, out);
        return;
      }
      std::byte *k = scratch_.k + g * group_bytes_, *v = scratch_.v + g * group_bytes_;
      pack_keys_of(key, first, last, k, ahead);
      pack_values_of(key, first, last, v, ahead);
      out.k[g] = k;
      out.v[g] = v;
    });
  }

  // Groups of the block at `block` that hold keys of [begin, end), which lies inside the block. Rows are
  // packed, fp8 is widened: K into the scratch memory's k, V into `v`.
  PM_INLINE void load(int32_t block, int32_t begin, int32_t end, std::byte* v, Block& out,
                      Ahead& ahead) const {
    load_keys(block, begin, end, out, ahead);
    load_values(block, begin, end, v, out, ahead);
  }
  // As load, in two parts: k alone, unless it takes no more to load v too; then what of v is left.
  PM_INLINE void load_keys(int32_t block, int32_t begin, int32_t end, Block& out, Ahead& ahead) const {
    for_groups(block, begin, end, [&](int32_t key, int first, int last, int32_t g) PM_INLINE_LAMBDA {
      if (in_place()) {
        tile(key, first, last, g, out);
        return;
      }
      out.k[g] = scratch_.k + g * group_bytes_;
      if (is_f8(step_.cache.dtype)) {
        widen_keys<Isa>(f8_keys(key, first, last, ahead), step_.cache.dtype, step_.vbmi, step_.head_dim,
                        scratch_.k + g * group_bytes_, ahead);
      } else {
        pack_keys_of(key, first, last, scratch_.k + g * group_bytes_, ahead);
      }
    });
  }
  PM_INLINE void load_values(int32_t block, int32_t begin, int32_t end, std::byte* v, Block& out,
                             Ahead& ahead) const {
    if (in_place()) return;
    for_groups(block, begin, end, [&](int32_t key, int first, int last, int32_t g) PM_INLINE_LAMBDA {
      out.v[g] = v + g * group_bytes_;
      if (is_f8(step_.cache.dtype)) {
        widen_values<Isa>(f8_values(key, first, last, ahead), step_.cache.dtype, step_.vbmi, step_.head_dim,
                          v + g * group_bytes_, ahead);
      } else {
        pack_values_of(key, first, last, v + g * group_bytes_, ahead);
      }
    });
  }

 private:
  template <class F>
  PM_INLINE void for_groups(int32_t block, int32_t begin, int32_t end, F f) const {
    for (int32_t g = (begin - block) / kGroupKeys; g * kGroupKeys < end - block; ++g) {
      const int32_t key = block + g * kGroupKeys;
      f(key, begin > key ? begin - key : 0, end - key < kGroupKeys ? end - key : kGroupKeys, g);
    }
  }

  // Whole groups of visible keys are read as they lie in the cache.
  bool in_place() const { return step_.cache.layout == PM_TILES && !is_f8(step_.cache.dtype); }

  PM_INLINE void tile(int32_t key, int first, int last, int32_t g, Block& out) const {
    KeyPlace place = place_of(step_, seq_, kv_head_, key);
    if (first != 0 || last != kGroupKeys) {
      std::byte* k = scratch_.k + g * group_bytes_;
      std::byte* v = scratch_.v + g * group_bytes_;
      copy_visible_keys<Isa>(place.k, step_.head_dim, element_, first, last, k);
      copy_visible_values<Isa>(place.v, step_.head_dim, element_, first, last, v);
      place = {k, v};
    }
    out.k[g] = place.k;
    out.v[g] = place.v;
  }

  // A group of fp8 as PM_TILES has it, zeros for the slots outside [first, last): in the cache, else in
  // `raw`.
  const std::byte* f8_keys(int32_t key, int first, int last, Ahead& ahead) const {
    if (step_.cache.layout != PM_TILES) {
      pack_keys_of(key, first, last, scratch_.raw, ahead);
      return scratch_.raw;
    }
    const std::byte* group = place_of(step_, seq_, kv_head_, key).k;
    if (first == 0 && last == kGroupKeys) return group;
    copy_visible_keys<Isa>(group, step_.head_dim, element_, first, last, scratch_.raw);
    return scratch_.raw;
  }
  const std::byte* f8_values(int32_t key, int first, int last, Ahead& ahead) const {
    if (step_.cache.layout != PM_TILES) {
      pack_values_of(key, first, last, scratch_.raw, ahead);
      return scratch_.raw;
    }
    const std::byte* group = place_of(step_, seq_, kv_head_, key).v;
    if (first == 0 && last == kGroupKeys) return group;
    copy_visible_values<Isa>(group, step_.head_dim, element_, first, last, scratch_.raw);
    return scratch_.raw;
  }

  // The rows of a group; zeros for those outside [first, last).
  PM_INLINE void rows_of(int32_t key, int first, int last, const std::byte** k, const std::byte** v) const {
    alignas(64) static constexpr float kZeros[kMaxHeadDim] = {};
    const auto* zeros = reinterpret_cast<const std::byte*>(kZeros);
    for (int t = 0; t < first; ++t) k[t] = v[t] = zeros;
    RowWalk walk(step_, seq_, kv_head_, key + first);
    for (int t = first; t < last; ++t) {
      const KeyPlace place = walk.next();
      k[t] = place.k;
      v[t] = place.v;
    }
    for (int t = last; t < kGroupKeys; ++t) k[t] = v[t] = zeros;
  }
  PM_NOINLINE void pack_keys_of(int32_t key, int first, int last, std::byte* dst, Ahead& ahead) const {
    const std::byte *k[kGroupKeys], *v[kGroupKeys];
    rows_of(key, first, last, k, v);
    pack_keys<Isa>(k, step_.head_dim, element_, dst, &ahead);
  }
  PM_NOINLINE void pack_values_of(int32_t key, int first, int last, std::byte* dst, Ahead& ahead) const {
    const std::byte *k[kGroupKeys], *v[kGroupKeys];
    rows_of(key, first, last, k, v);
    pack_values<Isa>(v, step_.head_dim, element_, dst, &ahead);
  }

  const Step& step_;
  const Sequence& seq_;
  const int32_t kv_head_;
  const Scratch& scratch_;
  const int64_t element_ = dtype_bytes(step_.cache.dtype),
                group_bytes_ = kGroupKeys * dtype_bytes(computing_dtype(step_.cache.dtype)) *
                               step_.head_dim;  // as multiplied
};

}  // namespace pagemill
