// The rows of an item in the scratch memory: its queries on their way in, its states on their way out.
#pragma once

#include <cstring>

#include "attention/convert_row.h"
#include "attention/merge.h"
#include "attention/softmax.h"
#include "attention/step.h"

namespace pagemill {

template <class Isa, Mma kMma, int kD>
class ItemRows {
 public:
  ItemRows(const Step& step, const Item& item, std::byte* base, int32_t scratch_rows)
      : step_(step),
        item_(item),
        seq_(step.sequences[item.seq]),
        dim_(kD ? kD : step.head_dim),
        ldo_(padded_dim(dim_)),
        head_rows_((item.token_end - item.token_begin) * step.group),
        rows_(head_rows_ * (item.kv_head_end - item.kv_head_begin)) {
    scratch_layout(base, scratch_rows, dim_, step.batch_invariant, scratch_);
  }

  // Rows of the scratch memory: KV head, then query token, then query head of the group.
  int32_t kv_head_of(int row) const { return item_.kv_head_begin + row / head_rows_; }
  int32_t token_of(int row) const { return item_.token_begin + row % head_rows_ / step_.group; }
  int32_t head_of(int row) const { return kv_head_of(row) * step_.group + row % step_.group; }

  // Calls f(row, token, head) for every row; divisions would take longer than short rows of work.
  template <class F>
  PM_INLINE void for_all_rows(F f) {
    int row = 0;
    for (int32_t kv_head = item_.kv_head_begin; kv_head < item_.kv_head_end; ++kv_head) {
      for (int32_t token = item_.token_begin; token < item_.token_end; ++token) {
        for (int32_t g = 0; g < step_.group; ++g) f(row++, token, kv_head * step_.group + g);
      }
    }
  }

  void pack_queries() {
    const int64_t element = dtype_bytes(step_.dtype);
    if (step_.dtype == (kBf16Weights ? PM_BF16 : PM_F32) && step_.q.stride_head == dim_) {
      pack_tokens();
      return;
    }
    for_all_rows([&](int r, int32_t token, int32_t head) {
      const int64_t at =
          (int64_t{seq_.query_begin} + token) * step_.q.stride_token + head * step_.q.stride_head;
      convert_row<Isa>(step_.q.data + at * element, step_.dtype, scratch_.q + int64_t{r} * dim_ * kRowBytes,
                       kBf16Weights ? PM_BF16 : PM_F32, dim_, 1.0f);
    });
  }

  // Queries that lie as they are packed, the heads of a token side by side.
  void pack_tokens() {
    const int64_t bytes = int64_t{step_.group} * dim_ * kRowBytes;
    std::byte* to = scratch_.q;
    for (int32_t kv_head = item_.kv_head_begin; kv_head < item_.kv_head_end; ++kv_head) {
      for (int32_t token = item_.token_begin; token < item_.token_end; ++token, to += bytes) {
        const int64_t at = (int64_t{seq_.query_begin} + token) * step_.q.stride_token +
                           int64_t{kv_head} * step_.group * dim_;
        std::memcpy(to, step_.q.data + at * kRowBytes, static_cast<size_t>(bytes));
      }
    }
  }

  // Calls f(row_begin, row_end) for the rows of queries [token_begin, token_end), KV head by KV head.
  template <class F>
  PM_INLINE void for_heads(int32_t token_begin, int32_t token_end, F f) {
    const int begin = (token_begin - item_.token_begin) * step_.group;
    const int end = (token_end - item_.token_begin) * step_.group;
    for (int base = 0; base < rows_; base += head_rows_) f(base + begin, base + end);
  }

  bool transforms() const { return step_.soft_cap != 0 || step_.alibi_slopes || !(step_.scale > 0); }

  // Calls f(row, keys that it sees, transform of its scores from key `key` on) for rows of one KV head.
  template <class F>
  PM_INLINE void for_rows(int row_begin, int row_end, int32_t key, F f) {
    ScoreTransform transform{step_.scale, step_.soft_cap, 0, 0, transforms()};
    int32_t token = token_of(row_begin), head = head_of(row_begin);
    const int32_t past_head = head - row_begin % step_.group + step_.group;
    for (int row = row_begin; row < row_end; ++row, ++head) {  // no division for each row
      if (head == past_head) {
        head -= step_.group;
        ++token;
      }
      if (step_.alibi_slopes) {
        transform.slope = step_.alibi_slopes[head];
        transform.first_distance = static_cast<float>(int64_t{seq_.first_position} + token - key);
      }
      f(row, visible_keys(seq_, step_.window, token), transform);
    }
  }

  // Keys of the item that rows [row, row + rows) all see, none if scores are transformed.
  Range plain_keys(int row, int rows) const {
    if (transforms()) return {0, 0};
    const Range first = visible_keys(seq_, step_.window, token_of(row));
    const Range last = visible_keys(seq_, step_.window, token_of(row + rows - 1));
    return {last.begin > item_.key_begin ? last.begin : item_.key_begin,
            first.end < item_.key_end ? first.end : item_.key_end};
  }
  bool anchored(int row, int rows) const {
    bool all = true;
    for (int r = row; r < row + rows; ++r) all &= scratch_.m[r] != kNone;
    return all;
  }

  void clear(int row_begin, int row_end) {
    for (int r = row_begin; r < row_end; ++r) {
      scratch_.m[r] = kNone;
      std::memset(scratch_.l + r * kGroupKeys, 0, kGroupKeys * sizeof(float));
      std::memset(scratch_.o + int64_t{r} * ldo_, 0, static_cast<size_t>(ldo_) * sizeof(float));
    }
  }

  float sum_l(int row) const {
    float sum = 0;
    for (int i = 0; i < kGroupKeys; i += Isa::kLanes) {
      sum += Isa::reduce_add(Isa::load(scratch_.l + row * kGroupKeys + i));
    }
    return sum;
  }

  // Adds what the rows hold to what their earlier invariant splits gave, and clears them.
  void fold_split(int row_begin, int row_end, bool first) {
    for (int r = row_begin; r < row_end; ++r) {
      float* acc = scratch_.acc + int64_t{r} * (ldo_ + 2);
      if (first) {
        std::memset(acc, 0, static_cast<size_t>(ldo_) * sizeof(float));
        acc[ldo_] = kNone;
        acc[ldo_ + 1] = 0;
      }
      fold<Isa>(dim_, acc, acc[ldo_], acc[ldo_ + 1], scratch_.o + int64_t{r} * ldo_, scratch_.m[r], sum_l(r));
    }
    clear(row_begin, row_end);
  }

  void take_folded(int row_begin, int row_end) {
    for (int r = row_begin; r < row_end; ++r) {
      const float* acc = scratch_.acc + int64_t{r} * (ldo_ + 2);
      std::memcpy(scratch_.o + int64_t{r} * ldo_, acc, static_cast<size_t>(ldo_) * sizeof(float));
      scratch_.m[r] = acc[ldo_];
      scratch_.l[r * kGroupKeys] = acc[ldo_ + 1];
    }
  }

  bool finite() const {
    auto zeros = Isa::zero();
    for (int64_t r = 0; r < rows_; ++r) add_zeros(scratch_.o + r * ldo_, zeros);
    return Isa::reduce_add(zeros) == 0.0f;
  }
  // Zero for each number that is finite, NaN for others.
  PM_INLINE void add_zeros(const float* o, typename Isa::F& zeros) const {
    for (int d = 0; d < ldo_; d += Isa::kLanes) zeros = Isa::fma(Isa::load(o + d), Isa::zero(), zeros);
  }

  // Writes what the rows hold, or leaves it as a partial result; the last of these to arrive merges them all.
  // False, and what was written is to be written again, if rows of several tokens hold what is not finite.
  bool finish() {
    const bool look = item_.token_end - item_.token_begin > 1 && !looked_;
    looked_ = true;
    if (item_.merge < 0) {
      auto zeros = Isa::zero();
      for_all_rows([&](int r, int32_t token, int32_t head) {
        const float* o = scratch_.o + int64_t{r} * ldo_;
        if (look) add_zeros(o, zeros);
        emit(token, head, o, scratch_.m[r], sum_l(r));
      });
      return Isa::reduce_add(zeros) == 0.0f;
    }
    if (look && !finite()) return false;
    const Merge& merge = step_.merges[item_.merge];
    const int64_t record = dim_ + 2;
    const auto partial = [&](int split, int row) {
      const int64_t head_split = int64_t{kv_head_of(row)} * merge.num_splits + split;
      return step_.partials + merge.partial_offset + (head_split * head_rows_ + row % head_rows_) * record;
    };
    for (int r = 0; r < rows_; ++r) {
      float* to = partial(item_.split, r);
      std::memcpy(to, scratch_.o + int64_t{r} * ldo_, static_cast<size_t>(dim_) * sizeof(float));
      to[dim_] = scratch_.m[r];
      to[dim_ + 1] = sum_l(r);
    }
    std::atomic<int32_t>& arrived =
        step_.arrivals[int64_t{item_.merge} * step_.num_kv_heads + item_.kv_head_begin];
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < merge.num_splits) return true;
    for_all_rows([&](int r, int32_t token, int32_t head) {
      float* o = scratch_.o;
      float m = kNone, l = 0;
      std::memset(o, 0, static_cast<size_t>(ldo_) * sizeof(float));
      for (int split = 0; split < merge.num_splits; ++split) {
        const float* from = partial(split, r);
        fold<Isa>(dim_, o, m, l, from, from[dim_], from[dim_ + 1]);
      }
      emit(token, head, o, m, l);
    });
    return true;
  }

 protected:
  static constexpr bool kBf16Weights = kMma == Mma::kBf16;
  static constexpr int kRowBytes = kBf16Weights ? 2 : 4;
  static constexpr float kNone = -std::numeric_limits<float>::infinity();

  // Normalises a row with its sink and writes out and lse.
  void emit(int32_t of_sequence, int32_t head, const float* o, float m, float l) {
    const int64_t token = int64_t{seq_.query_begin} + of_sequence;
    std::byte* out = step_.out.data + (token * step_.out.stride_token + head * step_.out.stride_head) *
                                          dtype_bytes(step_.out_dtype);
    float lse = step_.sinks ? step_.sinks[head] : kNone;
    if (m == kNone && l == 0.0f) {
      std::memset(out, 0, static_cast<size_t>(dim_ * dtype_bytes(step_.out_dtype)));
    } else {
      float top = m, keep = 1.0f, denominator = l;
      if (step_.sinks) {
        const float sink = lse * kLog2e;
        top = sink > m ? sink : m;
        keep = std::exp2(m - top);
        denominator = l * keep + std::exp2(sink - top);
      }
      const float scale = step_.v_scale * keep / denominator;
      if (kBf16Weights && step_.out_dtype == PM_BF16 && dim_ % (2 * Isa::kLanes) == 0) {
        round_to_bf16(o, scale, reinterpret_cast<uint16_t*>(out));
      } else {
        convert_row<Isa>(reinterpret_cast<const std::byte*>(o), PM_F32, out, step_.out_dtype, dim_, scale);
      }
      if (step_.lse) lse = (top + std::log2(denominator)) * kLn2;
    }
    if (step_.lse) step_.lse[token * step_.lse_stride + head] = lse;
  }

  // As convert_row, in fewer instructions, but that denormals may become zero.
  PM_INLINE void round_to_bf16(const float* o, float scale, uint16_t* out) const {
    if constexpr (kBf16Weights) {
      const auto factor = Isa::set1(scale);
      for (int d = 0; d < dim_; d += 2 * Isa::kLanes) {
        Isa::store_weights(out + d, Isa::mul(Isa::load(o + d), factor), out + d + Isa::kLanes,
                           Isa::mul(Isa::load(o + d + Isa::kLanes), factor));
      }
    }
  }

  const Step& step_;
  const Item& item_;
  const Sequence& seq_;
  const int dim_, ldo_, head_rows_, rows_;  // head_rows_: of one KV head
  Scratch scratch_;

 private:
  bool looked_ = false;  // for what is not finite
};

}  // namespace pagemill
