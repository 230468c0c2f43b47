#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "reference.h"

namespace pagemill {
namespace {

using reference::put;
using reference::Range;

enum class Tensor : uint64_t { kQ, kK, kV, kSink, kSlope };

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// N(0,1), the same for the same row.
class Normals {
 public:
  Normals(uint64_t seed, Tensor tensor, int64_t id, int64_t token, int64_t head)
      : state_(
            mix(mix(mix(mix(seed + uint64_t(tensor)) + uint64_t(id)) + uint64_t(token)) + uint64_t(head))) {}
  double next() {
    static const std::vector<double> table = [] {
      std::mt19937_64 engine(1);
      std::normal_distribution<double> normal;
      std::vector<double> values(4096);
      for (double& value : values) value = normal(engine);
      return values;
    }();
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return table[state_ >> 52];
  }

 private:
  uint64_t state_;
};

template <class T>
T* add_array(std::vector<GuardedBuffer>& to, Edge edge, const std::vector<T>& values) {
  GuardedBuffer& buffer = to.emplace_back(values.size() * sizeof(T), edge, sizeof(T));
  std::copy(values.begin(), values.end(), reinterpret_cast<T*>(buffer.data()));
  return reinterpret_cast<T*>(buffer.data());
}

bool writes(const Spec& spec) {
  return spec.write_cache && spec.layout != PM_NO_CACHE;
}

// Keys that some query of sequence seq sees.
Range seen(const Case& c, int seq) {
  Range all{INT64_MAX, 0};
  for (int i = 0; i < c.q_len(seq); ++i) {
    Range range = reference::visible(c.config, c.batch, seq, i);
    if (range.begin == range.end) continue;
    all = {std::min(all.begin, range.begin), std::max(all.end, range.end)};
  }
  return all;
}

// The cache page of each page of each sequence: shared ones are the parent's, all others distinct and
// shuffled.
std::vector<std::vector<int>> place_pages(const Spec& spec, int* num_pages) {
  std::vector<std::vector<int>> pages(spec.seqs.size());
  int used = 0;
  auto place = [&](auto& self, size_t seq) -> void {
    const SequenceSpec& s = spec.seqs[seq];
    int count = (s.kv_len + spec.page_size - 1) / spec.page_size;
    if (!pages[seq].empty()) return;
    for (size_t other = 0; s.parent >= 0 && other < spec.seqs.size(); ++other) {
      if (spec.seqs[other].id != s.parent) continue;
      self(self, other);
      pages[seq].assign(pages[other].begin(), pages[other].begin() + s.shared_pages);
    }
    while (int(pages[seq].size()) < count) pages[seq].push_back(used++);
  };
  for (size_t seq = 0; seq < spec.seqs.size(); ++seq) place(place, seq);
  *num_pages = used + spec.spare_pages;
  std::vector<int> order(*num_pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(spec.page_seed));
  for (auto& list : pages)
    for (int& page : list) page = order[page];
  return pages;
}

// The sequence (its index) from which seq has page number `page`.
int owner(const Spec& spec, int seq, int64_t page) {
  const SequenceSpec& s = spec.seqs[seq];
  if (s.parent < 0 || page >= s.shared_pages) return seq;
  for (size_t other = 0; other < spec.seqs.size(); ++other)
    if (spec.seqs[other].id == s.parent) return owner(spec, int(other), page);
  return seq;
}

struct Strides {
  int64_t page, token, head;

  int64_t extent(int64_t pages, int64_t tokens, int64_t heads, int64_t last) const {
    return pages == 0 ? 0 : (pages - 1) * page + (tokens - 1) * token + (heads - 1) * head + last;
  }
};

void set_strides(pm_args& args, const Strides& k, const Strides& v) {
  args.k_stride_page = k.page, args.k_stride_token = k.token, args.k_stride_head = k.head;
  args.v_stride_page = v.page, args.v_stride_token = v.token, args.v_stride_head = v.head;
}

}  // namespace

Case::Case(const Spec& the_spec) : spec(the_spec) {
  config.num_heads = spec.num_heads;
  config.num_kv_heads = spec.num_kv_heads;
  config.head_dim = spec.head_dim;
  config.dtype = spec.dtype;
  config.out_dtype = spec.out_dtype;
  config.cache_dtype = spec.cache_dtype;
  config.layout = spec.layout;
  config.page_size = spec.layout == PM_NO_CACHE ? 0 : spec.page_size;
  config.causal = spec.causal;
  config.window_left = spec.window_left;
  config.window_right = spec.window_right;
  config.write_cache = spec.write_cache;
  config.batch_invariant = spec.batch_invariant;
  config.threads = spec.threads;
  config.isa = spec.isa;
  add_sequences();
  add_scalars();
  add_tokens();
  add_outputs();
  if (spec.layout != PM_NO_CACHE) add_pages();
  save();
}

void Case::add_sequences() {
  std::vector<int32_t> query_start{0}, kv_len, first_position;
  std::vector<uint8_t> causal;
  bool positions = false, causal_flags = false;
  for (const SequenceSpec& s : spec.seqs) {
    query_start.push_back(query_start.back() + s.q_len);
    kv_len.push_back(s.kv_len);
    first_position.push_back(s.first_position.value_or(s.kv_len - s.q_len));
    causal.push_back(s.causal.value_or(spec.causal));
    positions |= s.first_position.has_value();
    causal_flags |= s.causal.has_value();
  }
  batch.num_seqs = int32_t(spec.seqs.size());
  batch.num_tokens = query_start.back() + spec.padding_tokens;
  batch.query_start = add_array(metadata, spec.edge, query_start);
  if (spec.layout != PM_NO_CACHE || spec.seed % 2) batch.kv_len = add_array(metadata, spec.edge, kv_len);
  if (positions) batch.first_position = add_array(metadata, spec.edge, first_position);
  if (causal_flags) batch.causal = add_array(metadata, spec.edge, causal);
}

void Case::add_scalars() {
  args.scale = spec.scale;
  args.soft_cap = spec.soft_cap;
  args.q_scale = spec.q_scale, args.k_scale = spec.k_scale, args.v_scale = spec.v_scale;
  std::vector<float> sinks(spec.num_heads), slopes(spec.num_heads);
  for (int h = 0; h < spec.num_heads; ++h) {
    sinks[h] = float(2 * Normals(spec.seed, Tensor::kSink, 0, 0, h).next());
    slopes[h] = float(std::fabs(Normals(spec.seed, Tensor::kSlope, 0, 0, h).next()) / 8);
  }
  if (spec.sinks) args.sinks = add_array(inputs, spec.edge, sinks);
  if (spec.alibi) args.alibi_slopes = add_array(inputs, spec.edge, slopes);
}

void Case::add_tokens() {
  const int64_t dims = spec.head_dim, heads = spec.num_heads, kv_heads = spec.num_kv_heads;
  const int64_t rows = batch.num_tokens, real_rows = batch.query_start[batch.num_seqs];
  const size_t bytes = reference::size_of(spec.dtype);
  const bool fused = spec.tokens == TokenForm::kFused;
  const int64_t pad = spec.tokens == TokenForm::kPadded ? 3 : 0;
  const int64_t fused_token = (heads + 2 * kv_heads) * dims;
  const bool new_keys = writes(spec) || spec.layout == PM_NO_CACHE;
  std::byte* qkv = nullptr;
  if (fused && rows > 0) qkv = inputs.emplace_back(rows * fused_token * bytes, spec.edge, bytes).data();

  // num_heads rows of D for every token, filled for those that belong to a sequence.
  auto add = [&](Tensor tensor, int64_t num_heads, int64_t fused_head, double amplitude,
                 int64_t& stride_token, int64_t& stride_head) -> std::byte* {
    int64_t head_stride = dims + pad;
    int64_t token_stride = fused ? fused_token : num_heads * head_stride + 2 * pad;
    if (spec.tokens != TokenForm::kContiguous) stride_head = head_stride, stride_token = token_stride;
    if (rows == 0) return nullptr;
    int64_t extent = (rows - 1) * token_stride + (num_heads - 1) * head_stride + dims;
    std::byte* data = fused ? qkv + fused_head * dims * bytes
                            : inputs.emplace_back(extent * bytes, spec.edge, bytes).data();
    int seq = 0;
    for (int64_t token = 0; token < real_rows; ++token) {
      while (token >= batch.query_start[seq + 1]) ++seq;
      const SequenceSpec& s = spec.seqs[seq];
      int64_t j = token - batch.query_start[seq] + s.kv_len - s.q_len;
      for (int64_t head = 0; head < num_heads; ++head) {
        Normals normals(spec.seed, tensor, s.id, j, head);
        for (int64_t d = 0; d < dims; ++d)
          put(spec.dtype, data, token * token_stride + head * head_stride + d, amplitude * normals.next());
      }
    }
    return data;
  };
  args.q = add(Tensor::kQ, heads, 0, spec.amplitude, args.q_stride_token, args.q_stride_head);
  if (!new_keys) return;
  args.k_new = add(Tensor::kK, kv_heads, heads, 1, args.k_new_stride_token, args.k_new_stride_head);
  args.v_new =
      add(Tensor::kV, kv_heads, heads + kv_heads, 1, args.v_new_stride_token, args.v_new_stride_head);
}

void Case::add_outputs() {
  const int64_t rows = batch.num_tokens, pad = spec.out_padded ? 5 : 0;
  const int64_t head = spec.head_dim + pad, token = spec.num_heads * head + pad;
  const size_t bytes = reference::size_of(spec.out_dtype);
  int64_t extent = rows == 0 ? 0 : (rows - 1) * token + (spec.num_heads - 1) * head + spec.head_dim;
  args.out = out.emplace_back(extent * bytes, spec.edge, bytes).data();
  if (spec.out_padded) args.out_stride_head = head, args.out_stride_token = token;
  if (!spec.lse) return;
  int64_t lse_token = spec.num_heads + pad;
  if (spec.out_padded) args.lse_stride_token = lse_token;
  extent = rows == 0 ? 0 : (rows - 1) * lse_token + spec.num_heads;
  args.lse =
      reinterpret_cast<float*>(out.emplace_back(extent * sizeof(float), spec.edge, sizeof(float)).data());
}

void Case::add_pages() {
  int num_pages = 0;
  const auto pages = place_pages(spec, &num_pages);
  config.num_pages = num_pages;
  size_t columns = 1 + spec.seed % 2;
  for (const auto& list : pages) columns = std::max(columns, list.size());
  const int B = batch.num_seqs, extra_rows = spec.row_index ? 2 : 0;
  std::vector<int32_t> rows(B + extra_rows);
  std::iota(rows.begin(), rows.end(), 0);
  if (spec.row_index) std::shuffle(rows.begin(), rows.end(), std::mt19937_64(spec.seed));
  batch.pages_per_seq = int32_t(columns);
  if (spec.table_padding) batch.page_table_stride = int64_t(columns) + spec.table_padding;
  const int64_t stride = int64_t(columns) + spec.table_padding;

  const int32_t garbage[] = {-1, num_pages, INT32_MIN, INT32_MAX};
  std::vector<int32_t> table(rows.size() * stride);
  for (size_t i = 0; i < table.size(); ++i) table[i] = garbage[i % 4];
  for (int b = 0; b < B; ++b) {
    Range range = seen(*this, b);
    for (int64_t p = 0; p < int64_t(pages[b].size()); ++p) {
      int64_t begin = p * spec.page_size, end = std::min<int64_t>(begin + spec.page_size, batch.kv_len[b]);
      bool written = writes(spec) && end > batch.kv_len[b] - q_len(b);
      if (written || (begin < range.end && end > range.begin)) table[rows[b] * stride + p] = pages[b][p];
    }
  }
  table.resize(table.empty() ? 0 : table.size() - spec.table_padding);  // the last row ends at the guard
  batch.page_table = add_array(metadata, spec.edge, table);
  if (spec.row_index) {
    batch.page_table_rows = B + extra_rows;
    rows.resize(B);
    batch.row_index = add_array(metadata, spec.edge, rows);
  }
  add_cache(num_pages);
  fill_cache(pages);
}

void Case::add_cache(int64_t num_pages) {
  const int64_t D = spec.head_dim, K = spec.num_kv_heads, P = spec.page_size;
  const size_t bytes = reference::size_of(spec.cache_dtype);
  const bool tiles = spec.layout == PM_TILES;
  const bool padded = spec.cache == CacheForm::kPadded;
  const int64_t line = int64_t(64 / bytes);
  auto add = [&](int64_t elements) {
    return cache.emplace_back(elements * bytes, spec.edge, tiles ? 64 : bytes).data();
  };
  auto add_two = [&](const Strides& k, const Strides& v, int64_t tokens, int64_t last) {
    set_strides(args, k, v);
    args.k_cache = add(k.extent(num_pages, tokens, K, last));
    args.v_cache = add(v.extent(num_pages, tokens, K, last));
  };
  auto add_one = [&](const Strides& both, int64_t v_offset, int64_t tokens, int64_t last) {
    set_strides(args, both, both);
    std::byte* data = add(both.extent(num_pages, tokens, K, v_offset + last));
    args.k_cache = data;
    args.v_cache = data + v_offset * bytes;
  };
  if (tiles) {
    if (padded)
      add_two({K * (P * D + line) + line, 0, P * D + line}, {K * P * D + 3 * line, 0, P * D}, 1, P * D);
    else if (spec.cache == CacheForm::kHeadMajor)
      add_two({K * P * D, 0, P * D}, {K * P * D, 0, P * D}, 1, P * D);
    else
      add_one({K * 2 * P * D, 0, 2 * P * D}, P * D, 1, P * D);
    if (spec.cache == CacheForm::kContiguous) set_strides(args, {}, {});
    return;
  }
  switch (spec.cache) {
    case CacheForm::kContiguous:
      add_two({P * K * D, K * D, D}, {P * K * D, K * D, D}, P, D);
      set_strides(args, {}, {});
      return;
    case CacheForm::kHeadMajor: return add_two({K * P * D, D, P * D}, {K * P * D, D, P * D}, P, D);
    case CacheForm::kPadded:
      return add_two({P * (K * (D + 3) + 5) + 7, K * (D + 3) + 5, D + 3},
                     {P * (K * (D + 1) + 2) + 1, K * (D + 1) + 2, D + 1}, P, D);
    case CacheForm::kInterleaved: return add_one({P * 2 * K * D, 2 * K * D, 2 * D}, D, P, D);
    case CacheForm::kPaired: return add_one({K * P * 2 * D, 2 * D, P * 2 * D}, D, P, D);
  }
}

void Case::fill_cache(const std::vector<std::vector<int>>& pages) {
  const pm_args full = reference::with_strides(config, args);
  const int D = spec.head_dim, P = spec.page_size;
  for (int b = 0; b < batch.num_seqs; ++b) {
    Range range = seen(*this, b);
    for (int64_t j = range.begin; j < range.end; ++j) {
      const SequenceSpec& s = spec.seqs[owner(spec, b, j / P)];
      if (writes(spec) && j < s.kv_len && j >= s.kv_len - s.q_len) continue;  // left to the run
      int page = pages[b][j / P], slot = int(j % P);
      for (int head = 0; head < spec.num_kv_heads; ++head) {
        Normals k(spec.seed, Tensor::kK, s.id, j, head), v(spec.seed, Tensor::kV, s.id, j, head);
        for (int d = 0; d < D; ++d) {
          put(spec.cache_dtype, args.k_cache, reference::key_index(config, full, page, slot, head, d),
              k.next() / spec.k_scale);
          put(spec.cache_dtype, args.v_cache, reference::value_index(config, full, page, slot, head, d),
              v.next() / spec.v_scale);
        }
      }
    }
  }
}

void GuardedCall::save() {
  for (auto* group : {&metadata, &inputs, &cache, &out})
    for (GuardedBuffer& buffer : *group) buffer.save();
}

void GuardedCall::restore() {
  for (auto* group : {&cache, &out})
    for (GuardedBuffer& buffer : *group) buffer.restore();
}

const std::byte* GuardedCall::out_row(int seq, int query, int head) const {
  const pm_args full = reference::with_strides(config, args);
  int64_t token = batch.query_start[seq] + query;
  return static_cast<const std::byte*>(args.out) +
         reference::size_of(config.out_dtype) * (token * full.out_stride_token + head * full.out_stride_head);
}

float GuardedCall::lse(int seq, int query, int head) const {
  const pm_args full = reference::with_strides(config, args);
  return args.lse[(batch.query_start[seq] + query) * full.lse_stride_token + head];
}

std::vector<std::byte> GuardedCall::outputs() const {
  std::vector<std::byte> bytes;
  for (const GuardedBuffer& buffer : out)
    bytes.insert(bytes.end(), buffer.data(), buffer.data() + buffer.size());
  return bytes;
}

}  // namespace pagemill
