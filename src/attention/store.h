// New keys and values into the cache: stored = round(new / scale), in the cache's dtype and layout.
#pragma once

#include "attention/convert_row.h"
#include "attention/stage.h"
#include "attention/step.h"

namespace pagemill {

template <class Isa>
class TokenStore {
 public:
  TokenStore(const Step& step, const Sequence& seq, int32_t kv_head, std::byte* raw)
      : step_(step), seq_(seq), kv_head_(kv_head), raw_(raw) {}

  // Rows layout: straight into the cache.
  void row(int32_t token) const {
    const KeyPlace place = place_of(step_, seq_, kv_head_, key_of(token));
    convert(step_.k_new, token, step_.k_scale, const_cast<std::byte*>(place.k));
    convert(step_.v_new, token, step_.v_scale, const_cast<std::byte*>(place.v));
  }

  // Tiles: one token's elements, spread over its group.
  void tile_token(int32_t token) const {
    const int32_t key = key_of(token), slot = key % kGroupKeys;
    const KeyPlace group = place_of(step_, seq_, kv_head_, key - slot);
    auto* k = reinterpret_cast<uint32_t*>(const_cast<std::byte*>(group.k));
    const auto* words = reinterpret_cast<const uint32_t*>(raw_);
    const int dim = step_.head_dim;
    convert(step_.k_new, token, step_.k_scale, raw_);
    const int n = dim * static_cast<int>(element()) / 4;
    for (int i = 0; i < n; ++i) k[i * kGroupKeys + slot] = words[i];
    convert(step_.v_new, token, step_.v_scale, raw_);
    if (element() == 4) {
      scatter_value<uint32_t>(group, slot);
    } else if (element() == 2) {
      scatter_value<uint16_t>(group, slot);
    } else {
      scatter_value<uint8_t>(group, slot);
    }
  }

  // Tiles: sixteen tokens that fill a group.
  void tile_group(int32_t token) const {
    const KeyPlace group = place_of(step_, seq_, kv_head_, key_of(token));
    const std::byte* rows[kGroupKeys] = {};
    convert_rows(step_.k_new, token, step_.k_scale, rows);
    pack_keys<Isa>(rows, step_.head_dim, element(), const_cast<std::byte*>(group.k), nullptr);
    convert_rows(step_.v_new, token, step_.v_scale, rows);
    pack_values<Isa>(rows, step_.head_dim, element(), const_cast<std::byte*>(group.v), nullptr);
  }

  int32_t key_of(int32_t token) const { return seq_.kv_len - seq_.q_len + token; }

 private:
  int64_t element() const { return dtype_bytes(step_.cache.dtype); }

  // raw_ to a slot of V [16/r][D][r].
  template <class Element>
  void scatter_value(const KeyPlace& group, int32_t slot) const {
    constexpr int kPack = 4 / sizeof(Element);
    const int dim = step_.head_dim;
    auto* v = reinterpret_cast<Element*>(const_cast<std::byte*>(group.v)) +
              int64_t{slot / kPack} * dim * kPack + slot % kPack;
    const auto* elements = reinterpret_cast<const Element*>(raw_);
    for (int d = 0; d < dim; ++d) v[kPack * d] = elements[d];
  }

  const std::byte* source(const Tensor& from, int32_t token) const {
    const int64_t at =
        (int64_t{seq_.query_begin} + token) * from.stride_token + int64_t{kv_head_} * from.stride_head;
    return from.data + at * dtype_bytes(step_.dtype);
  }
  void convert(const Tensor& from, int32_t token, float scale, std::byte* to) const {
    convert_row<Isa, Scaling::kDivide>(source(from, token), step_.dtype, to, step_.cache.dtype,
                                       step_.head_dim, scale);
  }
  void convert_rows(const Tensor& from, int32_t token, float scale, const std::byte** rows) const {
    for (int t = 0; t < kGroupKeys; ++t) {
      std::byte* row = raw_ + int64_t{t} * step_.head_dim * element();
      convert(from, token + t, scale, row);
      rows[t] = row;
    }
  }

  const Step& step_;
  const Sequence& seq_;
  const int32_t kv_head_;
  std::byte* raw_;
};

template <class Isa>
PM_NOINLINE void store_tokens(const Step& step, const Sequence& seq, int32_t kv_head, int32_t begin,
                              int32_t end, std::byte* raw) {
  const TokenStore<Isa> store(step, seq, kv_head, raw);
  int32_t token = begin;
  while (token < end) {
    if (step.cache.layout == PM_ROWS) {
      store.row(token++);
    } else if (store.key_of(token) % kGroupKeys == 0 && end - token >= kGroupKeys) {
      store.tile_group(token);
      token += kGroupKeys;
    } else {
      store.tile_token(token++);
    }
  }
}

}  // namespace pagemill
