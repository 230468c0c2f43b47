#include "fuzzed_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "reference.h"

namespace pagemill {
namespace {

constexpr int kMostSeqs = 6, kMostTableEntries = 1 << 14;
constexpr int64_t kMostElements = 1 << 20;  // of a tensor

template <class T>
const T* add_array(std::vector<GuardedBuffer>& to, Edge edge, const std::vector<T>& values) {
  GuardedBuffer& buffer = to.emplace_back(values.size() * sizeof(T), edge, sizeof(T));
  std::copy(values.begin(), values.end(), reinterpret_cast<T*>(buffer.data()));
  return reinterpret_cast<const T*>(buffer.data());
}

struct Dimension {
  int64_t count, stride;
};

// Elements from the first to the last, of which `last` lie at the end; strides that count for nothing are
// passed over. Negative where the library must refuse.
int64_t extent(std::initializer_list<Dimension> dimensions, int64_t last) {
  double elements = static_cast<double>(last);
  for (const Dimension& d : dimensions) {
    if (d.count == 0) return 0;
    if (d.count > 1 && d.stride < 0) return -1;
    if (d.count > 1) elements += static_cast<double>(d.count - 1) * static_cast<double>(d.stride);
  }
  return static_cast<int64_t>(std::min(elements, 0x1p60));
}

}  // namespace

FuzzedCall::FuzzedCall(Bytes& bytes) {
  edge_ = bytes.pick({Edge::kEnd, Edge::kStart});
  choose_config(bytes);
  choose_sequences(bytes);
  choose_pages(bytes);
  choose_strides(bytes);
  choose_scalars(bytes);
  passed.config = config, passed.batch = batch, passed.args = args;
  mistakes_ = bytes.pick({0, 1, 1, 2, 1, 0, 3, 1});
  for (int i = 0; i < mistakes_; ++i) spoil(bytes);
  claim_no_more_than_there_is();
  add_metadata();
  if (mistakes_ > 0 && bytes.one_in(4)) spoil_metadata_pointer(bytes);
  const pm_config read = as_read(passed.config, PM_CONFIG_INIT);
  const auto shape = [](const pm_config& c) {
    return std::tuple(c.layout, c.page_size, c.num_kv_heads, c.head_dim);
  };
  // With strides of another shape tokens may overlap, and what is left of them depends on the order of
  // writes.
  cache_strides_spoilt_ |=
      shape(read) != shape(config) && (passed.args.k_stride_page != 0 || passed.args.v_stride_page != 0);
  config = read;
  batch = as_read(passed.batch, PM_BATCH_INIT);
  save();
}

void FuzzedCall::choose_config(Bytes& bytes) {
  static const std::vector<const char*> isas = available_isas();
  const auto dtype = [&] { return bytes.pick({PM_BF16, PM_F32, PM_F16}); };
  config.num_kv_heads = bytes.pick({1, 2, 3});
  config.num_heads = config.num_kv_heads * bytes.pick({1, 2, 4, 5, 16});
  config.head_dim = bytes.pick({16, 64, 24, 80, 136});
  config.dtype = dtype();
  config.out_dtype = bytes.any<bool>() ? PM_F32 : config.dtype;
  config.cache_dtype = bytes.one_in(3) ? bytes.pick({PM_F8E4M3, PM_F8E5M2}) : dtype();
  config.layout = bytes.pick({PM_TILES, PM_ROWS, PM_TILES, PM_ROWS, PM_NO_CACHE});
  config.page_size = config.layout == PM_TILES ? bytes.pick({16, 32, 48}) : bytes.pick({16, 1, 5, 33});
  config.causal = !bytes.one_in(4);
  config.window_left = bytes.pick({-1, -1, 0, 1, 15, 40, INT32_MAX});
  config.window_right = bytes.pick({-1, -1, 0, 16, INT32_MAX});
  config.write_cache = !bytes.one_in(4);
  config.batch_invariant = bytes.one_in(4);
  config.threads = bytes.between(1, 9);
  config.isa = isas[static_cast<size_t>(bytes.between(0, static_cast<int>(isas.size()) - 1))];
}

void FuzzedCall::choose_sequences(Bytes& bytes) {
  const bool writes = config.write_cache && config.layout != PM_NO_CACHE;
  const bool positions = bytes.one_in(4), flags = bytes.one_in(4);
  batch.num_seqs = bytes.between(0, 4);
  for (int b = 0; b < batch.num_seqs; ++b) {
    const int q_len = bytes.pick({1, 1, 0, 2, 5, 17, 33});
    const bool causal = flags ? bytes.any<bool>() : config.causal;
    int kv_len =
        q_len + (config.layout == PM_NO_CACHE ? 0 : bytes.pick({0, 1, 14, 15, 16, 127, 130, 300, 1030}));
    if (!causal && !writes && config.layout != PM_NO_CACHE && bytes.one_in(3)) kv_len = q_len / 2;
    query_start_.push_back(query_start_.back() + q_len);
    kv_len_.push_back(kv_len);
    causal_.push_back(causal);
    first_position_.push_back(positions ? bytes.between(0, kv_len + 2) : kv_len - q_len);
  }
  batch.num_tokens = query_start_.back() + bytes.pick({0, 0, 3});
  if (!positions) first_position_.clear();
  if (!flags) causal_.clear();
}

// Every sequence has pages of its own, but for those that it only reads: some of these are anyone's.
void FuzzedCall::choose_pages(Bytes& bytes) {
  if (config.layout == PM_NO_CACHE) {
    if (bytes.any<bool>()) kv_len_.clear();
    return;
  }
  const bool rows = bytes.one_in(3), shared = bytes.one_in(3);
  const auto pages_of = [&](int length) { return (length + config.page_size - 1) / config.page_size; };
  int columns = 1, used = 0;
  for (const int length : kv_len_) columns = std::max(columns, pages_of(length)), used += pages_of(length);
  config.num_pages = used + bytes.between(0, 3);
  batch.pages_per_seq = columns;
  const int stride = columns + bytes.pick({0, 0, 2});
  if (stride > columns) batch.page_table_stride = stride;
  const int table_rows = batch.num_seqs + (rows ? 2 : 0);
  if (rows) batch.page_table_rows = table_rows;
  table_.assign(static_cast<size_t>(table_rows * stride), -1);
  int next = 0;
  for (int b = 0; b < batch.num_seqs; ++b) {
    const size_t seq = static_cast<size_t>(b);
    const int row = rows ? table_rows - 1 - b : b;
    if (rows) row_index_.push_back(row);
    const int first_new = kv_len_[seq] - (query_start_[seq + 1] - query_start_[seq]);
    for (int p = 0; p < pages_of(kv_len_[seq]); ++p, ++next) {
      const bool read_only = (p + 1) * config.page_size <= first_new;
      int page = used - 1 - next;  // against the order of the table
      if (shared && read_only && bytes.one_in(4)) page = bytes.between(0, used - 1);
      table_[static_cast<size_t>(row * stride + p)] = page;
    }
  }
}

void FuzzedCall::choose_strides(Bytes& bytes) {
  const int64_t D = config.head_dim, K = config.num_kv_heads, P = config.page_size;
  const int64_t tokens = std::max(1, query_start_.back());
  const auto choose = [&](int64_t heads, int64_t& token, int64_t& head) {
    const int pad = bytes.pick({0, 0, 3});
    switch (bytes.between(0, 2)) {
      case 0: break;  // contiguous
      case 1: head = D + pad, token = heads * head + pad; break;
      default: token = D + pad, head = tokens * token + pad; break;
    }
  };
  choose(config.num_heads, args.q_stride_token, args.q_stride_head);
  choose(K, args.k_new_stride_token, args.k_new_stride_head);
  choose(K, args.v_new_stride_token, args.v_new_stride_head);
  choose(config.num_heads, args.out_stride_token, args.out_stride_head);
  args.lse_stride_token = bytes.pick({0, config.num_heads, config.num_heads + 3});
  const auto choose_cache = [&](int64_t& page, int64_t& token, int64_t& head) {
    const bool tiles = config.layout == PM_TILES;
    const int64_t pad = bytes.pick({0, 0, 1}) * (tiles ? 64 : 3);
    switch (bytes.between(0, 2)) {
      case 0: break;  // contiguous
      case 1:         // head by head
        token = D, head = P * D + pad, page = K * head + pad;
        break;
      default:
        head = tiles ? P * D : D + pad, token = K * head + pad,
        page = tiles ? K * head + pad : P * token + pad;
        break;
    }
  };
  choose_cache(args.k_stride_page, args.k_stride_token, args.k_stride_head);
  choose_cache(args.v_stride_page, args.v_stride_token, args.v_stride_head);
}

void FuzzedCall::choose_scalars(Bytes& bytes) {
  args.scale = bytes.pick({0.0f, 0.0f, 0.25f, -0.1f});
  args.soft_cap = bytes.pick({0.0f, 0.0f, 0.0f, 2.0f});
  args.q_scale = bytes.pick({1.0f, 1.0f, 0.7f});
  args.k_scale = bytes.pick({1.0f, 1.0f, 0.5f, 1.3f});
  args.v_scale = bytes.pick({1.0f, 1.0f, 2.0f, 0.7f});
}

// The library cannot know how long a caller's arrays are: they get the length that the call claims, and
// claims beyond all memory are withdrawn.
void FuzzedCall::claim_no_more_than_there_is() {
  pm_batch& b = passed.batch;
  b.num_seqs = std::min(b.num_seqs, kMostSeqs);
  const auto seqs = static_cast<size_t>(std::max(b.num_seqs, 0));
  query_start_.resize(seqs + 1, query_start_.back());
  if (config.layout != PM_NO_CACHE) kv_len_.resize(seqs, 0);
  for (auto* array : {&kv_len_, &row_index_, &first_position_}) {
    if (!array->empty()) array->resize(seqs, 0);
  }
  if (!causal_.empty()) causal_.resize(seqs, 0);
  const pm_batch read = as_read(b, PM_BATCH_INIT);
  const int64_t rows = read.page_table_rows ? read.page_table_rows : read.num_seqs;
  const int64_t stride = read.page_table_stride ? read.page_table_stride : read.pages_per_seq;
  const int64_t entries = extent({{rows, stride}}, std::max(read.pages_per_seq, 0));
  if (entries > kMostTableEntries) {
    b.page_table_rows = 0, b.page_table_stride = 0, b.pages_per_seq = 1;
    table_.resize(seqs, 0);
  } else {
    table_.resize(static_cast<size_t>(std::max<int64_t>(entries, 0)), -1);
  }
}

void FuzzedCall::add_metadata() {
  pm_batch& b = passed.batch;
  b.query_start = add_array(metadata, edge_, query_start_);
  if (!kv_len_.empty() || config.layout != PM_NO_CACHE) b.kv_len = add_array(metadata, edge_, kv_len_);
  b.page_table = add_array(metadata, edge_, table_);
  if (!row_index_.empty()) b.row_index = add_array(metadata, edge_, row_index_);
  if (!first_position_.empty()) b.first_position = add_array(metadata, edge_, first_position_);
  if (!causal_.empty()) b.causal = add_array(metadata, edge_, causal_);
}

// Small enough to be run and compared.
bool FuzzedCall::fits() const {
  double work = 0;
  for (int b = 0; b < batch.num_seqs; ++b) {
    const double keys = config.layout == PM_NO_CACHE ? q_len(b) : batch.kv_len[b];
    work += q_len(b) * (keys + 1) * config.num_heads * config.head_dim;
  }
  return work < 1.5e6;
}

bool FuzzedCall::add_tensors(Bytes& bytes) {
  if (!fits()) return false;
  args = as_read(passed.args, PM_ARGS_INIT);
  const pm_args full = reference::with_strides(config, args);
  const int64_t n = batch.num_seqs ? batch.query_start[batch.num_seqs] : 0;
  const int64_t D = config.head_dim, H = config.num_heads, K = config.num_kv_heads;
  const auto element = static_cast<int64_t>(reference::size_of(config.dtype));
  bool small = true;
  const auto add = [&](std::vector<GuardedBuffer>& to, int64_t elements, int64_t bytes_each,
                       int64_t alignment) {
    small &= elements <= kMostElements;
    const int64_t size = std::clamp<int64_t>(elements, 0, kMostElements) * bytes_each;
    return to.emplace_back(static_cast<size_t>(size), edge_, static_cast<size_t>(alignment)).data();
  };
  const auto add_rows = [&](std::vector<GuardedBuffer>& to, int64_t heads, int64_t token, int64_t head,
                            int64_t size) {
    return add(to, extent({{n, token}, {heads, head}}, D), size, size);
  };
  pm_args& a = passed.args;
  a.q = add_rows(inputs, H, full.q_stride_token, full.q_stride_head, element);
  a.k_new = add_rows(inputs, K, full.k_new_stride_token, full.k_new_stride_head, element);
  a.v_new = add_rows(inputs, K, full.v_new_stride_token, full.v_new_stride_head, element);
  const auto out_element = static_cast<int64_t>(reference::size_of(config.out_dtype));
  a.out = add_rows(out, H, full.out_stride_token, full.out_stride_head, out_element);
  if (bytes.any<bool>()) {
    a.lse = reinterpret_cast<float*>(add(out, extent({{n, full.lse_stride_token}}, H), 4, 4));
  }
  const auto per_head = [&](bool wanted) -> const float* {
    if (!wanted) return nullptr;
    auto* values = reinterpret_cast<float*>(add(inputs, H, 4, 4));
    for (int h = 0; h < H; ++h) values[h] = 0.1f * static_cast<float>(h % 7);
    return values;
  };
  a.sinks = per_head(bytes.one_in(3));
  a.alibi_slopes = per_head(bytes.one_in(3));
  if (config.layout != PM_NO_CACHE) {
    const bool tiles = config.layout == PM_TILES;
    const int64_t P = config.page_size, last = tiles ? P * D : D;
    const auto cache_element = static_cast<int64_t>(reference::size_of(config.cache_dtype));
    const auto add_cache = [&](int64_t page, int64_t token, int64_t head) {
      const int64_t elements = extent({{config.num_pages, page}, {tiles ? 1 : P, token}, {K, head}}, last);
      return add(cache, elements, cache_element, tiles ? 64 : cache_element);
    };
    a.k_cache = add_cache(full.k_stride_page, full.k_stride_token, full.k_stride_head);
    a.v_cache = add_cache(full.v_stride_page, full.v_stride_token, full.v_stride_head);
  }
  if (!small) return false;
  args = as_read(passed.args, PM_ARGS_INIT);
  fill(bytes);
  save();
  if (mistakes_ > 0 && bytes.one_in(4)) spoil_tensor_pointer(bytes);
  return true;
}

// Finite numbers wherever something is read that the call does not write itself; the rest stays NaN.
void FuzzedCall::fill(Bytes& bytes) {
  uint32_t state = bytes.any<uint8_t>() + 1u;
  const auto next = [&] {
    state = state * 1664525u + 1013904223u;
    return static_cast<double>(static_cast<int32_t>(state)) * 0x1p-30;  // from -2 to 2
  };
  for (size_t tensor = 0; tensor < 3; ++tensor) {
    const GuardedBuffer& buffer = inputs[tensor];
    const auto n = static_cast<int64_t>(buffer.size() / reference::size_of(config.dtype));
    for (int64_t i = 0; i < n; ++i) reference::put(config.dtype, buffer.data(), i, next());
  }
  if (config.layout == PM_NO_CACHE || cache_strides_spoilt_ || !args.k_cache || !args.v_cache) return;
  for (int b = 0; b < batch.num_seqs; ++b) {
    for (int i = 0; i < q_len(b); ++i) {
      const reference::Range keys = reference::visible(config, batch, b, i);
      // What an earlier query saw is filled already.
      const int64_t done = i == 0 ? keys.begin : reference::visible(config, batch, b, i - 1).end;
      for (int64_t j = std::max(keys.begin, done); j < keys.end; ++j) fill_key(b, j, next);
    }
  }
  for (int b = 0; config.write_cache && b < batch.num_seqs; ++b) {
    for (int64_t j = batch.kv_len[b] - q_len(b); j < batch.kv_len[b]; ++j) fill_key(b, j, [] { return NAN; });
  }
}

void FuzzedCall::fill_key(int seq, int64_t j, const std::function<double()>& next) {
  const pm_args full = reference::with_strides(config, args);
  const int32_t page = reference::page_of(config, batch, seq, j);
  const int slot = static_cast<int>(j % config.page_size);
  for (int head = 0; head < config.num_kv_heads; ++head) {
    for (int d = 0; d < config.head_dim; ++d) {
      reference::put(config.cache_dtype, args.k_cache,
                     reference::key_index(config, full, page, slot, head, d), next());
      reference::put(config.cache_dtype, args.v_cache,
                     reference::value_index(config, full, page, slot, head, d), next());
    }
  }
}

bool FuzzedCall::moderate() const {
  const auto within = [](float x, float low, float high) { return x >= low && x <= high; };
  return within(std::fabs(args.scale), 0, 4) && (args.soft_cap == 0 || within(args.soft_cap, 0.5f, 100)) &&
         within(args.q_scale, 0.25f, 4) && within(args.k_scale, 0.25f, 4) && within(args.v_scale, 0.25f, 4);
}

}  // namespace pagemill
