#include "replay_layers.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>

#include "reference.h"

namespace pagemill {
namespace {

// Steps begin at one of this many rows of the pool, kStride apart: two primes, so that all take their turn.
constexpr int64_t kStarts = 1021, kStride = 619;
constexpr size_t kChunk = size_t{32} << 20;  // bytes that a task fills

void fill_with_nan(const HugeBuffer& buffer, pm_executor executor) {
  const auto chunks = static_cast<int32_t>((buffer.bytes() + kChunk - 1) / kChunk);
  const auto fill = [](void* arg, int32_t i) {
    const auto& target = *static_cast<const HugeBuffer*>(arg);
    // All bits set: a NaN of every dtype.
    std::memset(target.data() + i * kChunk, 0xff, std::min(kChunk, target.bytes() - i * kChunk));
  };
  executor.parallel_for(executor.context, chunks, fill, const_cast<HugeBuffer*>(&buffer));
}

}  // namespace

ReplayLayers::ReplayLayers(const pm_config& config, int layers, int32_t max_tokens,
                           const pm_executor& executor)
    : config_(config), row_elements_(int64_t{config.num_heads + 2 * config.num_kv_heads} * config.head_dim) {
  const int64_t elements = (kStarts + layers + max_tokens) * row_elements_;
  pool_.resize(elements * reference::size_of(config.dtype));
  std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < elements; ++i) reference::put(config.dtype, pool_.data(), i, normal(bits));
  out_.resize(int64_t{max_tokens} * config.num_heads * config.head_dim *
              reference::size_of(config.out_dtype));
  const int64_t cache_elements =
      2 * config.num_pages * config.page_size * int64_t{config.num_kv_heads} * config.head_dim;
  for (int i = 0; i < layers; ++i) {
    caches_.emplace_back(cache_elements * reference::size_of(config.cache_dtype));
    fill_with_nan(caches_.back(), executor);
  }
}

int64_t ReplayLayers::pool_row(int64_t step, int layer) const {
  return step * kStride % kStarts + layer;
}

const std::byte* ReplayLayers::pool(int64_t row, int head) const {
  return pool_.data() +
         (row * row_elements_ + int64_t{head} * config_.head_dim) * reference::size_of(config_.dtype);
}

Args ReplayLayers::args(int64_t step, int layer) {
  Args args;
  const int64_t row = pool_row(step, layer);
  args.q = pool(row, 0);
  args.k_new = pool(row, config_.num_heads);
  args.v_new = pool(row, config_.num_heads + config_.num_kv_heads);
  args.q_stride_token = args.k_new_stride_token = args.v_new_stride_token = row_elements_;
  args.out = out_.data();
  const int64_t plane = int64_t{config_.page_size} * config_.head_dim;  // elements of a page and head
  const int64_t v_offset =
      config_.layout == PM_TILES ? plane : config_.num_pages * config_.num_kv_heads * plane;
  std::byte* const cache = caches_[layer].data();
  args.k_cache = cache;
  args.v_cache = cache + v_offset * reference::size_of(config_.cache_dtype);
  return args;
}

ReplayCheck::ReplayCheck(const Schedule& schedule, const ReplayLayers& layers, int rows)
    : schedule_(schedule),
      layers_(layers),
      rows_(rows),
      source_(layers.config_.num_pages * layers.config_.page_size) {}

void ReplayCheck::begin(int64_t step) {
  const pm_config& config = layers_.config_;
  const Batch batch = schedule_.batch();
  auto row = static_cast<int32_t>(layers_.pool_row(step, 0));
  for (int b = 0; b < batch.num_seqs; ++b) {
    const int queries = batch.query_start[b + 1] - batch.query_start[b];
    for (int64_t key = batch.kv_len[b] - queries; key < batch.kv_len[b]; ++key) {
      const int64_t page = reference::page_of(config, batch, b, key);
      source_[page * config.page_size + key % config.page_size] = row++;
    }
  }
}

double ReplayCheck::check(const pm_args& args, int64_t step, int layer) const {
  const pm_config& config = layers_.config_;
  const Batch batch = schedule_.batch();
  std::mt19937 bits(static_cast<uint32_t>(step));
  const auto below = [&](int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(bits); };
  double worst = 0;
  for (int i = 0; i < rows_; ++i) {
    const auto seq = static_cast<int>(below(batch.num_seqs));
    const int queries = batch.query_start[seq + 1] - batch.query_start[seq];
    const auto query = static_cast<int>(below(queries)), head = static_cast<int>(below(config.num_heads));
    const int kv_head = head / (config.num_heads / config.num_kv_heads);
    const int64_t position = batch.kv_len[seq] - queries + query;
    const auto fail = [&](const std::string& reason) {
      const Trace& trace = schedule_.trace();
      throw std::runtime_error(fmt::format("{}:{}: wrong in step {}, layer {}: {}", trace.path,
                                           trace.requests[schedule_.step().request[seq]].line, step, layer,
                                           reason));
    };
    for (int64_t key : {position, below(position + 1)}) {
      if (!slot_right(args, layer, seq, key, kv_head)) {
        fail(fmt::format("the key or value cached at position {}, head {} is not what was stored", key,
                         kv_head));
      }
    }
    const double error = reference::error_in_bounds(config, batch, args, seq, query, head);
    if (!(error <= 1)) {
      fail(fmt::format("query at position {}, head {}: error {:.3g} times the bound", position, head, error));
    }
    worst = std::max(worst, error);
  }
  return worst;
}

bool ReplayCheck::slot_right(const pm_args& args, int layer, int seq, int64_t key, int kv_head) const {
  const pm_config& config = layers_.config_;
  const pm_args strided = reference::with_strides(config, args);
  const int64_t page = reference::page_of(config, schedule_.batch(), seq, key);
  const auto slot = static_cast<int>(key % config.page_size);
  const int64_t row = source_[page * config.page_size + slot] + layer;
  const std::byte* const k = layers_.pool(row, config.num_heads + kv_head);
  const std::byte* const v = layers_.pool(row, config.num_heads + config.num_kv_heads + kv_head);
  const auto equal = [&](const void* cache, int64_t index, const void* stored, int d) {
    float rounded;
    reference::put(config.cache_dtype, &rounded, 0, reference::get(config.dtype, stored, d));
    return reference::get(config.cache_dtype, cache, index) ==
           reference::get(config.cache_dtype, &rounded, 0);
  };
  for (int d = 0; d < config.head_dim; ++d) {
    if (!equal(args.k_cache, reference::key_index(config, strided, page, slot, kv_head, d), k, d))
      return false;
    if (!equal(args.v_cache, reference::value_index(config, strided, page, slot, kv_head, d), v, d))
      return false;
  }
  return true;
}

}  // namespace pagemill
