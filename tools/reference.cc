#include "reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace pagemill::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// kOverflow: the bits of what lies beyond kLargest.
template <pm_dtype>
struct Dtype;

template <>
struct Dtype<PM_F32> {
  using Bits = uint32_t;
  static constexpr int kFraction = 23, kMinExponent = -126;
  static constexpr double kLargest = 0x1.fffffep127;
  static constexpr Bits kOverflow = 0x7f800000;
  static double decode(Bits bits) { return std::bit_cast<float>(bits); }
};

template <>
struct Dtype<PM_BF16> {
  using Bits = uint16_t;
  static constexpr int kFraction = 7, kMinExponent = -126;
  static constexpr double kLargest = 0x1.fep127;
  static constexpr Bits kOverflow = 0x7f80;
  static double decode(Bits bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

template <>
struct Dtype<PM_F16> {
  using Bits = uint16_t;
  static constexpr int kFraction = 10, kMinExponent = -14;
  static constexpr double kLargest = 65504;
  static constexpr Bits kOverflow = 0x7c00;
  static double decode(Bits bits) {
    uint64_t sign = uint64_t{bits & 0x8000u} << 48;
    uint64_t magnitude = uint64_t{bits & 0x7fffu} << 42;  // exponent biased by 15 where fp64 biases by 1023
    bool finite = (bits & 0x7c00u) != 0x7c00u;
    double scaled = std::bit_cast<double>(sign | magnitude | (finite ? 0 : uint64_t{0x7ff} << 52));
    return finite ? scaled * 0x1p1008 : scaled;
  }
};

template <>
struct Dtype<PM_F8E5M2> {
  using Bits = uint8_t;
  static constexpr int kFraction = 2, kMinExponent = -14;
  static constexpr double kLargest = 57344;
  static constexpr Bits kOverflow = 0x7b;
  static double decode(Bits bits) { return Dtype<PM_F16>::decode(uint16_t(bits << 8)); }
};

template <>
struct Dtype<PM_F8E4M3> {
  using Bits = uint8_t;
  static constexpr int kFraction = 3, kMinExponent = -6;
  static constexpr double kLargest = 448;
  static constexpr Bits kOverflow = 0x7e;
  static double decode(Bits bits) {
    int exponent = bits >> 3 & 15, fraction = bits & 7;
    double size = exponent == 0                     ? std::ldexp(fraction, -9)
                  : exponent == 15 && fraction == 7 ? std::numeric_limits<double>::quiet_NaN()
                                                    : std::ldexp(8 + fraction, exponent - 10);
    return bits & 0x80 ? -size : size;
  }
};

// f(Dtype<dtype>{})
template <class F>
auto with_dtype(pm_dtype dtype, F&& f) {
  switch (dtype) {
    case PM_BF16: return f(Dtype<PM_BF16>{});
    case PM_F16: return f(Dtype<PM_F16>{});
    case PM_F8E4M3: return f(Dtype<PM_F8E4M3>{});
    case PM_F8E5M2: return f(Dtype<PM_F8E5M2>{});
    default: return f(Dtype<PM_F32>{});
  }
}

template <class T>
typename T::Bits encode(double value) {
  using Bits = typename T::Bits;
  constexpr int kBits = 8 * sizeof(Bits);
  constexpr uint64_t kMagnitude = (uint64_t{1} << (kBits - 1)) - 1;
  uint64_t sign = uint64_t{std::signbit(value)} << (kBits - 1);
  if (std::isnan(value)) return Bits(sign | kMagnitude);
  double magnitude = std::fabs(value);
  int exponent =
      magnitude > 0 && magnitude < kInf ? std::max(std::ilogb(magnitude), T::kMinExponent) : T::kMinExponent;
  // Whole units in the last place, the implicit bit among them: it carries into the exponent field.
  double units = std::nearbyint(std::ldexp(magnitude, T::kFraction - exponent));
  if (std::ldexp(units, exponent - T::kFraction) > T::kLargest) return Bits(sign | T::kOverflow);
  uint64_t biased = uint64_t(exponent - T::kMinExponent);
  return Bits(sign | ((biased << T::kFraction) + uint64_t(units)));
}

// Where the D elements of one key or value lie: d at start + d / run * stride + d % run.
struct Place {
  const void* base;
  int64_t start;
  int run;
  int64_t stride;

  int64_t index(int d) const { return start + d / run * stride + d % run; }
};

int elements_per_word(pm_dtype dtype) {
  return int(4 / size_of(dtype));
}

Place place_key(const pm_config& config, const pm_args& args, int64_t page, int slot, int head) {
  int64_t start = page * args.k_stride_page + head * args.k_stride_head;
  if (config.layout == PM_ROWS) return {args.k_cache, start + slot * args.k_stride_token, 1, 1};
  int r = elements_per_word(config.cache_dtype);
  return {args.k_cache, start + int64_t{slot / 16} * 16 * config.head_dim + slot % 16 * r, r, 16 * r};
}

Place place_value(const pm_config& config, const pm_args& args, int64_t page, int slot, int head) {
  int64_t start = page * args.v_stride_page + head * args.v_stride_head;
  if (config.layout == PM_ROWS) return {args.v_cache, start + slot * args.v_stride_token, 1, 1};
  int r = elements_per_word(config.cache_dtype);
  return {args.v_cache, start + int64_t{slot / r} * r * config.head_dim + slot % r, 1, r};
}

// The keys and values of one sequence and KV head.
class Keys {
 public:
  Keys(const pm_config& config, const pm_batch& batch, const pm_args& args, int seq, int head)
      : config_(config), batch_(batch), args_(args), seq_(seq), head_(head) {}

  Place key(int64_t j) const {
    if (config_.layout != PM_NO_CACHE)
      return place_key(config_, args_, page_of(config_, batch_, seq_, j), slot(j), head_);
    return {args_.k_new, row(j) * args_.k_new_stride_token + head_ * args_.k_new_stride_head, 1, 1};
  }
  Place value(int64_t j) const {
    if (config_.layout != PM_NO_CACHE)
      return place_value(config_, args_, page_of(config_, batch_, seq_, j), slot(j), head_);
    return {args_.v_new, row(j) * args_.v_new_stride_token + head_ * args_.v_new_stride_head, 1, 1};
  }

 private:
  int slot(int64_t j) const { return int(j % config_.page_size); }
  int64_t row(int64_t j) const { return batch_.query_start[seq_] + j; }

  const pm_config& config_;
  const pm_batch& batch_;
  const pm_args& args_;
  int seq_, head_;
};

template <class T>
void read_as(const Place& place, int dims, double* to) {
  auto* from = static_cast<const typename T::Bits*>(place.base) + place.start;
  if (place.run == 1 && place.stride == 1) {
    for (int d = 0; d < dims; ++d) to[d] = T::decode(from[d]);
  } else {
    for (int d = 0; d < dims; d += place.run, from += place.stride)
      for (int i = 0; i < place.run; ++i) to[d + i] = T::decode(from[i]);
  }
}

void read(pm_dtype dtype, const Place& place, int dims, double* to) {
  with_dtype(dtype, [&](auto type) { read_as<decltype(type)>(place, dims, to); });
}

struct Product {
  double sum;   // of q_d k_d
  double norm;  // root of the sum of their squares: the size of such a sum when signs are random
};

// Eight partial sums, which the compiler keeps in vectors. dims is a multiple of 8.
Product dot(const double* a, const double* b, int dims) {
  double sums[8] = {}, squares[8] = {};
  for (int d = 0; d < dims; d += 8)
    for (int i = 0; i < 8; ++i) {
      double term = a[d + i] * b[d + i];
      sums[i] += term;
      squares[i] += term * term;
    }
  return {std::accumulate(sums, sums + 8, 0.0), std::sqrt(std::accumulate(squares, squares + 8, 0.0))};
}

int64_t length(const pm_batch& batch, int seq) {
  return batch.kv_len ? batch.kv_len[seq] : batch.query_start[seq + 1] - batch.query_start[seq];
}

int64_t position_of(const pm_batch& batch, int seq, int query) {
  if (batch.first_position) return int64_t{batch.first_position[seq]} + query;
  return length(batch, seq) - (batch.query_start[seq + 1] - batch.query_start[seq]) + query;
}

// c of the bound, widened for large scores.
double product_error(const pm_config& config, const Row& row) {
  pm_dtype keys = kv_dtype(config);
  bool bf16_products = config.dtype == PM_BF16 && (keys == PM_BF16 || size_of(keys) == 1);
  return (bf16_products ? 0x1p-8 : 0x1p-16) * std::max(1.0, row.max_score / 32);
}

struct OutRounding {
  double relative;  // half an ulp
  double absolute;  // half the smallest number, or what sums in f32 may flush
};

OutRounding out_rounding(pm_dtype dtype) {
  switch (dtype) {
    case PM_BF16: return {0x1p-8, 0x1p-120};
    case PM_F16: return {0x1p-11, 0x1p-25};
    default: return {0x1p-24, 0x1p-120};
  }
}

double in_units(double got, double want, double bound) {
  if (std::isnan(want)) return std::isnan(got) ? 0 : kInf;
  if (got == want) return 0;
  double error = std::fabs(got - want) / bound;
  return std::isnan(error) ? kInf : error;
}

}  // namespace

size_t size_of(pm_dtype dtype) {
  return with_dtype(dtype, [](auto type) { return sizeof(typename decltype(type)::Bits); });
}

double get(pm_dtype dtype, const void* base, int64_t index) {
  return with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    return T::decode(static_cast<const typename T::Bits*>(base)[index]);
  });
}

void put(pm_dtype dtype, void* base, int64_t index, double value) {
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    static_cast<typename T::Bits*>(base)[index] = encode<T>(value);
  });
}

pm_dtype kv_dtype(const pm_config& config) {
  return config.layout == PM_NO_CACHE ? config.dtype : config.cache_dtype;
}

pm_args with_strides(const pm_config& config, const pm_args& args) {
  int64_t dims = config.head_dim, heads = config.num_heads, kv_heads = config.num_kv_heads;
  int64_t page = dims * config.page_size;
  pm_args full = args;
  auto set = [](int64_t& stride, int64_t contiguous) {
    if (stride == 0) stride = contiguous;
  };
  set(full.q_stride_head, dims), set(full.q_stride_token, heads * dims);
  set(full.out_stride_head, dims), set(full.out_stride_token, heads * dims);
  set(full.k_new_stride_head, dims), set(full.k_new_stride_token, kv_heads * dims);
  set(full.v_new_stride_head, dims), set(full.v_new_stride_token, kv_heads * dims);
  set(full.lse_stride_token, heads);
  bool tiles = config.layout == PM_TILES;
  for (int64_t* stride : {&full.k_stride_page, &full.v_stride_page})
    set(*stride, (tiles ? 2 : 1) * kv_heads * page);
  for (int64_t* stride : {&full.k_stride_head, &full.v_stride_head}) set(*stride, tiles ? 2 * page : dims);
  for (int64_t* stride : {&full.k_stride_token, &full.v_stride_token}) set(*stride, kv_heads * dims);
  return full;
}

int64_t key_index(const pm_config& config, const pm_args& args, int64_t page, int slot, int head, int d) {
  return place_key(config, args, page, slot, head).index(d);
}

int64_t value_index(const pm_config& config, const pm_args& args, int64_t page, int slot, int head, int d) {
  return place_value(config, args, page, slot, head).index(d);
}

int32_t page_of(const pm_config& config, const pm_batch& batch, int seq, int64_t j) {
  int64_t stride = batch.page_table_stride ? batch.page_table_stride : batch.pages_per_seq;
  int64_t row = batch.row_index ? batch.row_index[seq] : seq;
  return batch.page_table[row * stride + j / config.page_size];
}

Range visible(const pm_config& config, const pm_batch& batch, int seq, int query) {
  int64_t position = position_of(batch, seq, query);
  int64_t begin = 0, end = length(batch, seq);
  if (batch.causal ? batch.causal[seq] : config.causal) end = std::min(end, position + 1);
  if (config.window_left >= 0) begin = std::max(begin, position - config.window_left);
  if (config.window_right >= 0) end = std::min(end, position + config.window_right + 1);
  return {begin, std::max(begin, end)};
}

Row attend_row(const pm_config& config, const pm_batch& batch, const pm_args& args, int seq, int query,
               int head) {
  const int dims = config.head_dim;
  const pm_args full = with_strides(config, args);
  const Keys keys(config, batch, full, seq, head / (config.num_heads / config.num_kv_heads));
  const pm_dtype dtype = kv_dtype(config);
  const Range range = visible(config, batch, seq, query);
  const int64_t position = position_of(batch, seq, query);
  const double scale =
      (args.scale == 0 ? 1 / std::sqrt(double(dims)) : args.scale) * double(args.q_scale) * args.k_scale;

  std::vector<double> q(dims), key(dims);
  int64_t token = batch.query_start[seq] + query;
  read(config.dtype, {full.q, token * full.q_stride_token + head * full.q_stride_head, 1, 1}, dims, q.data());

  Row row{std::vector<double>(dims), std::vector<double>(dims), -kInf, 0, range.end - range.begin};
  std::vector<double> p(row.keys);  // scores first
  double max = args.sinks ? args.sinks[head] : -kInf;
  for (int64_t j = range.begin; j < range.end; ++j) {
    read(dtype, keys.key(j), dims, key.data());
    Product product = dot(q.data(), key.data(), dims);
    double score = scale * product.sum;
    row.max_score = std::max({row.max_score, std::fabs(score), 2 * std::fabs(scale) * product.norm});
    if (args.soft_cap > 0) score = args.soft_cap * std::tanh(score / args.soft_cap);
    if (args.alibi_slopes) score -= args.alibi_slopes[head] * std::fabs(double(position - j));
    row.max_score = std::max(row.max_score, std::fabs(score));
    p[j - range.begin] = score;
    max = std::max(max, score);
  }
  double sum = args.sinks ? std::exp(args.sinks[head] - max) : 0;
  for (double& x : p) sum += x = std::exp(x - max);
  if (row.keys > 0 || args.sinks) row.lse = max + std::log(sum);
  for (int64_t j = range.begin; j < range.end; ++j) {
    read(dtype, keys.value(j), dims, key.data());
    double weight = args.v_scale * p[j - range.begin] / sum;
    for (int d = 0; d < dims; ++d) {
      row.out[d] += weight * key[d];
      row.abs_pv[d] += std::fabs(weight * key[d]);
    }
  }
  return row;
}

void store(const pm_config& config, const pm_batch& batch, const pm_args& args) {
  if (config.layout == PM_NO_CACHE || !config.write_cache) return;
  const pm_args full = with_strides(config, args);
  for (int b = 0; b < batch.num_seqs; ++b) {
    int64_t first = batch.query_start[b], last = batch.query_start[b + 1];
    for (int64_t token = first; token < last; ++token) {
      int64_t j = batch.kv_len[b] - last + token;
      int32_t page = page_of(config, batch, b, j);
      for (int head = 0; head < config.num_kv_heads; ++head) {
        Place k = place_key(config, full, page, int(j % config.page_size), head);
        Place v = place_value(config, full, page, int(j % config.page_size), head);
        int64_t k_new = token * full.k_new_stride_token + head * full.k_new_stride_head;
        int64_t v_new = token * full.v_new_stride_token + head * full.v_new_stride_head;
        for (int d = 0; d < config.head_dim; ++d) {
          put(config.cache_dtype, full.k_cache, k.index(d),
              get(config.dtype, full.k_new, k_new + d) / args.k_scale);
          put(config.cache_dtype, full.v_cache, v.index(d),
              get(config.dtype, full.v_new, v_new + d) / args.v_scale);
        }
      }
    }
  }
}

double out_error(const pm_config& config, const Row& row, const void* out) {
  const double c = product_error(config, row);
  const OutRounding rounding = out_rounding(config.out_dtype);
  double worst = 0;
  for (int d = 0; d < config.head_dim; ++d) {
    double bound = rounding.relative * std::fabs(row.out[d]) + c * row.abs_pv[d] + rounding.absolute;
    if (row.keys == 0) bound = 0;
    worst = std::max(worst, in_units(get(config.out_dtype, out, d), row.out[d], bound));
  }
  return worst;
}

double lse_error(const pm_config& config, const Row& row, float lse) {
  if (row.keys == 0) return in_units(lse, row.lse, 0);
  return in_units(lse, row.lse, product_error(config, row) + 0x1p-22 * std::fabs(row.lse));
}

double error_in_bounds(const pm_config& config, const pm_batch& batch, const pm_args& args, int seq,
                       int query, int head) {
  const pm_args full = with_strides(config, args);
  Row row = attend_row(config, batch, args, seq, query, head);
  int64_t token = batch.query_start[seq] + query;
  auto* out = static_cast<const char*>(args.out) +
              size_of(config.out_dtype) * (token * full.out_stride_token + head * full.out_stride_head);
  double worst = out_error(config, row, out);
  if (args.lse)
    worst = std::max(worst, lse_error(config, row, args.lse[token * full.lse_stride_token + head]));
  return worst;
}

}  // namespace pagemill::reference
