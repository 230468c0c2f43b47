// What is spoilt in a fuzzed call.
#include <cmath>
#include <cstddef>
#include <limits>

#include "fuzzed_call.h"
#include "reference.h"

namespace pagemill {
namespace {

int odd_int(Bytes& bytes, int right) {
  switch (bytes.between(0, 3)) {
    case 0: return bytes.pick({-1, 0, 1, 2, 15, 16, 17, 1024, INT32_MAX, INT32_MIN, INT32_MIN + 1});
    case 1: return static_cast<int>(static_cast<unsigned>(right) + (bytes.any<bool>() ? 1u : ~0u));
    case 2: return bytes.between(-4, 300);
    default: return bytes.any<int32_t>();
  }
}

float odd_float(Bytes& bytes) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  return bytes.pick({0.0f, -0.0f, -1.0f, 3.0f, 1e-30f, 1e30f, -1e38f, 1e-44f, kInf, -kInf, NAN});
}

template <class T>
void shift(T*& p, int bytes) {
  p = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}

}  // namespace

void FuzzedCall::spoil(Bytes& bytes) {
  switch (bytes.between(0, 6)) {
    case 0: return spoil_config(bytes);
    case 1: return spoil_batch(bytes);
    case 2:
    case 3: return spoil_entry(bytes);
    case 4: return spoil_stride(bytes);
    case 5: return spoil_scalar(bytes);
    default: return;  // of pointers, when there are any
  }
}

void FuzzedCall::spoil_config(Bytes& bytes) {
  pm_config& c = passed.config;
  int32_t* const numbers[] = {&c.num_heads,   &c.num_kv_heads, &c.head_dim,       &c.v_head_dim,
                              &c.page_size,   &c.causal,       &c.window_left,    &c.window_right,
                              &c.write_cache, &c.threads,      &c.batch_invariant};
  const int which = bytes.between(0, static_cast<int>(std::size(numbers)) + 5);
  switch (which) {
    case 0: c.dtype = pm_dtype(bytes.between(0, 3)); break;
    case 1: c.out_dtype = pm_dtype(bytes.between(0, 3)); break;
    case 2: c.cache_dtype = pm_dtype(bytes.between(0, 3)); break;
    case 3: c.layout = pm_layout(bytes.between(0, 3)); break;
    case 4: c.num_pages = bytes.any<bool>() ? c.num_pages - 1 : bytes.any<int64_t>(); break;
    case 5:
      c.struct_size = bytes.pick({size_t{0}, sizeof(size_t), offsetof(pm_config, page_size),
                                  offsetof(pm_config, threads), offsetof(pm_config, isa)});
      break;
    default: *numbers[which - 6] = odd_int(bytes, *numbers[which - 6]);
  }
  if (bytes.one_in(12)) c.isa = bytes.pick({"", "mmx", static_cast<const char*>(nullptr)});
}

void FuzzedCall::spoil_batch(Bytes& bytes) {
  pm_batch& b = passed.batch;
  const auto odd = [&](int64_t right) {
    return bytes.one_in(3) ? bytes.any<int64_t>() : odd_int(bytes, int(right));
  };
  switch (bytes.between(0, 5)) {
    case 0: b.num_seqs = odd_int(bytes, b.num_seqs); break;
    case 1: b.num_tokens = odd(b.num_tokens); break;
    case 2: b.page_table_stride = odd(b.page_table_stride); break;
    case 3: b.pages_per_seq = odd_int(bytes, b.pages_per_seq); break;
    case 4: b.page_table_rows = odd_int(bytes, b.page_table_rows); break;
    default:
      b.struct_size = bytes.pick({size_t{0}, sizeof(size_t), offsetof(pm_batch, page_table_stride),
                                  offsetof(pm_batch, row_index), offsetof(pm_batch, first_position)});
  }
}

void FuzzedCall::spoil_entry(Bytes& bytes) {
  std::vector<int32_t>* const arrays[] = {&query_start_, &kv_len_,    &table_,
                                          &table_,       &row_index_, &first_position_};
  const int which = bytes.between(0, 6);
  if (which == 6) {
    if (!causal_.empty())
      causal_[static_cast<size_t>(bytes.between(0, int(causal_.size()) - 1))] = bytes.any<uint8_t>();
    return;
  }
  std::vector<int32_t>& array = *arrays[which];
  if (array.empty()) return;
  int32_t& entry = array[static_cast<size_t>(bytes.between(0, static_cast<int>(array.size()) - 1))];
  entry = odd_int(bytes, entry);
}

void FuzzedCall::spoil_stride(Bytes& bytes) {
  pm_args& a = passed.args;
  int64_t* const strides[] = {&a.q_stride_token,    &a.q_stride_head,      &a.k_new_stride_token,
                              &a.k_new_stride_head, &a.v_new_stride_token, &a.v_new_stride_head,
                              &a.out_stride_token,  &a.out_stride_head,    &a.lse_stride_token,
                              &a.k_stride_page,     &a.k_stride_token,     &a.k_stride_head,
                              &a.v_stride_page,     &a.v_stride_token,     &a.v_stride_head};
  const int which = bytes.between(0, static_cast<int>(std::size(strides)) - 1);
  const int64_t D = config.head_dim;
  *strides[which] = bytes.pick({int64_t{-1}, int64_t{1}, D - 1, D, D + 1, 2 * D, 64 * D, D * config.page_size,
                                INT64_MIN, INT64_MAX, bytes.any<int64_t>()});
  cache_strides_spoilt_ |= which >= 9;
}

void FuzzedCall::spoil_scalar(Bytes& bytes) {
  pm_args& a = passed.args;
  float* const scalars[] = {&a.scale, &a.soft_cap, &a.q_scale, &a.k_scale, &a.v_scale};
  const int which = bytes.between(0, static_cast<int>(std::size(scalars)));
  if (which == std::size(scalars)) {
    a.struct_size =
        bytes.pick({size_t{0}, sizeof(size_t), offsetof(pm_args, k_cache), offsetof(pm_args, scale)});
  } else {
    *scalars[which] = odd_float(bytes);
  }
}

void FuzzedCall::spoil_metadata_pointer(Bytes& bytes) {
  const int32_t** const pointers[] = {&passed.batch.query_start, &passed.batch.kv_len,
                                      &passed.batch.page_table, &passed.batch.row_index,
                                      &passed.batch.first_position};
  const int32_t*& pointer = *pointers[bytes.between(0, 4)];
  if (bytes.any<bool>()) {
    pointer = nullptr;
  } else if (pointer) {
    shift(pointer, bytes.between(1, 3));
  }
}

void FuzzedCall::spoil_tensor_pointer(Bytes& bytes) {
  pm_args& a = passed.args;
  const int by = bytes.between(1, 3);
  const bool null = bytes.any<bool>();
  const auto spoil = [&](auto& pointer) {
    if (null) {
      pointer = nullptr;
    } else {
      shift(pointer, by % static_cast<int>(reference::size_of(config.dtype)) ? by : 1);
    }
  };
  switch (bytes.between(0, 6)) {
    case 0: spoil(a.q); break;
    case 1: spoil(a.k_new); break;
    case 2: spoil(a.v_new); break;
    case 3: spoil(a.out); break;
    case 4: spoil(a.k_cache); break;
    case 5: spoil(a.v_cache); break;
    default: spoil(a.lse); break;
  }
  args = as_read(a, PM_ARGS_INIT);
}

}  // namespace pagemill
