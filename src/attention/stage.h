// A block of keys and values as the matrix verbs read it: pointers straight into the cache where a whole
// group of 16 visible keys lies there in the computing dtype, packed into scratch otherwise.
#pragma once

#include "attention/convert_row.h"
#include "attention/step.h"

namespace pagemill {

struct Block {
  const std::byte* k[kBlockGroups];
  const std::byte* v[kBlockGroups];
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

// Keys of the layouts PM_ROWS and PM_NO_CACHE one after the other, without a division for each.
class RowWalk {
 public:
  PM_INLINE RowWalk(const Step& step, const Sequence& seq, int32_t kv_head, int32_t key)
      : cache_(step.cache), element_(dtype_bytes(step.cache.dtype)), kv_head_(kv_head) {
    if (cache_.layout == PM_NO_CACHE) {
      slot_ = int64_t{seq.query_begin} + key;
      return;
    }
    page_ = step.pages + seq.page_bias + key / cache_.page_size;
    slot_ = key % cache_.page_size;
  }

  PM_INLINE KeyPlace next() {
    const int64_t page = page_ ? *page_ : 0;
    const KeyPlace place{
        cache_.k + (page * cache_.k_page + kv_head_ * cache_.k_head + slot_ * cache_.k_token) * element_,
        cache_.v + (page * cache_.v_page + kv_head_ * cache_.v_head + slot_ * cache_.v_token) * element_};
    if (++slot_ == cache_.page_size && page_) {
      slot_ = 0;
      ++page_;
    }
    return place;
  }

 private:
  const CacheView& cache_;
  const int64_t element_, kv_head_;
  const int32_t* page_ = nullptr;  // entry of the page table; none without a cache
  int64_t slot_;
};

// Copies a group of PM_TILES with the slots outside [begin, end) zero, so that a NaN there meets no product.
template <class Isa>
PM_NOINLINE void copy_visible(const KeyPlace& from, int head_dim, int64_t element, int begin, int end,
                              std::byte* k, std::byte* v) {
  const int pack = static_cast<int>(4 / element), words = head_dim / pack;
  uint32_t mask[kGroupKeys];
  for (int t = 0; t < kGroupKeys; ++t) mask[t] = t >= begin && t < end ? ~0u : 0u;
  const auto* src = reinterpret_cast<const uint32_t*>(from.k);
  auto* dst = reinterpret_cast<uint32_t*>(k);
  for (int i = 0; i < words; ++i) {
    for (int t = 0; t < kGroupKeys; ++t) dst[i * kGroupKeys + t] = src[i * kGroupKeys + t] & mask[t];
  }
  src = reinterpret_cast<const uint32_t*>(from.v);
  dst = reinterpret_cast<uint32_t*>(v);
  for (int t = 0; t < kGroupKeys / pack; ++t) {
    const uint32_t m = pack == 1 ? mask[t] : (mask[2 * t] & 0xffffu) | (mask[2 * t + 1] & 0xffff0000u);
    for (int d = 0; d < head_dim; ++d) dst[t * head_dim + d] = src[t * head_dim + d] & m;
  }
}

// f16 groups (r = 2) to f32 groups (r = 1): rows of n word pairs become two rows each.
template <class Isa>
PM_NOINLINE void unpack_f16(const std::byte* src, int rows, int n, float* dst) {
  for (int row = 0; row < rows; ++row) {
    const auto* words = reinterpret_cast<const uint32_t*>(src) + row * n;
    float* even_row = dst + 2 * row * n;
    for (int i = 0; i < n; i += Isa::kLanes) {
      const int lanes = n - i < Isa::kLanes ? n - i : Isa::kLanes;
      typename Isa::F even, odd;
      Isa::widen_f16_pairs(words + i, lanes, even, odd);
      Isa::store(even_row + i, even, lanes);
      Isa::store(even_row + n + i, odd, lanes);
    }
  }
}

template <class Isa>
class Stager {
 public:
  Stager(const Step& step, const Sequence& seq, int32_t kv_head, const Scratch& scratch)
      : step_(step), seq_(seq), kv_head_(kv_head), scratch_(scratch) {}

  // Groups of the block at `block` that hold keys of [begin, end), which lies inside the block.
  PM_INLINE void load(int32_t block, int32_t begin, int32_t end, Block& out) const {
    for (int32_t g = (begin - block) / kGroupKeys; g * kGroupKeys < end - block; ++g) {
      const int32_t key = block + g * kGroupKeys;
      const int first = begin > key ? begin - key : 0;
      const int last = end - key < kGroupKeys ? end - key : kGroupKeys;
      if (step_.cache.layout == PM_TILES) {
        tile(key, first, last, g, out);
      } else {
        pack_rows(key, first, last, g, out);
      }
    }
  }

  // The part of [begin, end) that lies in the block of key `begin`, to be fetched from where it lies.
  PM_INLINE void ahead(int32_t begin, int32_t end, Ahead& out) const {
    const int32_t block_end = begin / kBlockKeys * kBlockKeys + kBlockKeys;
    if (end > block_end) end = block_end;
    const int64_t row_bytes = step_.head_dim * dtype_bytes(step_.cache.dtype);
    const auto add = [&](const KeyPlace& place) {
      out.chunks[out.num_chunks++] = place.k;
      out.chunks[out.num_chunks++] = place.v;
    };
    if (step_.cache.layout == PM_TILES) {
      out.lines = static_cast<int32_t>(kGroupKeys * row_bytes / 64);
      for (int32_t key = begin / kGroupKeys * kGroupKeys; key < end; key += kGroupKeys) {
        add(place_of(step_, seq_, kv_head_, key));
      }
    } else {
      out.lines = static_cast<int32_t>((row_bytes + 63) / 64);
      RowWalk walk(step_, seq_, kv_head_, begin);
      for (int32_t key = begin; key < end; ++key) add(walk.next());
    }
  }

 private:
  int64_t group_bytes() const {
    return int64_t{kGroupKeys} * step_.head_dim * (step_.cache.dtype == PM_BF16 ? 2 : 4);
  }

  PM_INLINE void tile(int32_t key, int first, int last, int32_t g, Block& out) const {
    KeyPlace place = place_of(step_, seq_, kv_head_, key);
    const bool whole = first == 0 && last == kGroupKeys, f16 = step_.cache.dtype == PM_F16;
    if (!whole || f16) {
      std::byte* k = scratch_.k + g * group_bytes();
      std::byte* v = scratch_.v + g * group_bytes();
      repack(place, whole, f16, first, last, k, v);
      place = {k, v};
    }
    out.k[g] = place.k;
    out.v[g] = place.v;
  }

  PM_NOINLINE void repack(KeyPlace place, bool whole, bool f16, int first, int last, std::byte* k,
                          std::byte* v) const {
    const int dim = step_.head_dim;
    if (!whole) {
      std::byte* k_raw = f16 ? scratch_.raw : k;
      std::byte* v_raw = f16 ? scratch_.raw + kGroupKeys * dim * 2 : v;
      copy_visible<Isa>(place, dim, dtype_bytes(step_.cache.dtype), first, last, k_raw, v_raw);
      place = {k_raw, v_raw};
    }
    if (f16) {
      unpack_f16<Isa>(place.k, dim / 2, kGroupKeys, reinterpret_cast<float*>(k));
      unpack_f16<Isa>(place.v, kGroupKeys / 2, dim, reinterpret_cast<float*>(v));
    }
  }

  PM_NOINLINE void pack_rows(int32_t key, int first, int last, int32_t g, Block& out) const {
    alignas(64) static constexpr float kZeros[kMaxHeadDim] = {};
    const std::byte* k_rows[kGroupKeys];
    const std::byte* v_rows[kGroupKeys];
    RowWalk walk(step_, seq_, kv_head_, key + first);
    const auto* zeros = reinterpret_cast<const std::byte*>(kZeros);
    for (int t = 0; t < kGroupKeys; ++t) {
      const KeyPlace place = t >= first && t < last ? walk.next() : KeyPlace{zeros, zeros};
      k_rows[t] = place.k;
      v_rows[t] = place.v;
    }
    const int dim = step_.head_dim;
    const int64_t element = step_.cache.dtype == PM_BF16 ? 2 : 4;
    std::byte* k = scratch_.k + g * group_bytes();
    std::byte* v = scratch_.v + g * group_bytes();
    if (step_.cache.dtype == PM_F16) widen(k_rows);
    pack_keys<Isa>(k_rows, dim, element, k);
    if (step_.cache.dtype == PM_F16) widen(v_rows);
    pack_values<Isa>(v_rows, dim, element, v);
    out.k[g] = k;
    out.v[g] = v;
  }

  void widen(const std::byte** rows) const {
    for (int t = 0; t < kGroupKeys; ++t) {
      std::byte* row = scratch_.raw + int64_t{t} * step_.head_dim * 4;
      convert_row<Isa>(rows[t], PM_F16, row, PM_F32, step_.head_dim, 1.0f);
      rows[t] = row;
    }
  }

  const Step& step_;
  const Sequence& seq_;
  const int32_t kv_head_;
  const Scratch& scratch_;
};

}  // namespace pagemill
