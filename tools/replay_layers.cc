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
// Values of the pool that are drawn; then they repeat. A prime, so that no two rows are alike.
constexpr int64_t kDraws = 1048583;
constexpr int64_t kChunk = int64_t{16} << 20;  // bytes that a task fills
constexpr int64_t kAhead = int64_t{64} << 20;  // bytes of K or V that are filled beyond what is asked for

// All bits set: a NaN of every dtype.
void fill_with_nan(std::byte* data, int64_t bytes, const pm_executor& executor) {
  struct Range {
    std::byte* data;
    int64_t bytes;
  } range{data, bytes};
  const auto fill = [](void* arg, int32_t i) {
    const auto& [data, bytes] = *static_cast<Range*>(arg);
    std::memset(data + i * kChunk, 0xff, std::min(kChunk, bytes - i * kChunk));
  };
  executor.parallel_for(executor.context, static_cast<int32_t>((bytes + kChunk - 1) / kChunk), fill, &range);
}

}  // namespace

ReplayLayers::ReplayLayers(const pm_config& config, int layers, int32_t max_tokens)
    : config_(config),
      row_elements_(int64_t{config.num_heads + 2 * config.num_kv_heads} * config.head_dim),
      plane_bytes_(int64_t{config.page_size} * config.head_dim * reference::size_of(config.cache_dtype)) {
  const int64_t drawn_bytes = kDraws * reference::size_of(config.dtype);
  pool_.resize((kStarts + layers + max_tokens) * row_elements_ * reference::size_of(config.dtype) +
               drawn_bytes);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < kDraws; ++i) reference::put(config.dtype, pool_.data(), i, normal(bits));
  for (auto to = pool_.begin() + drawn_bytes; to != pool_.end();) {
    to = std::copy_n(pool_.begin(), std::min<int64_t>(drawn_bytes, pool_.end() - to), to);
  }
  out_.resize(int64_t{max_tokens} * config.num_heads * config.head_dim *
              reference::size_of(config.out_dtype));
  for (int i = 0; i < layers; ++i)
    caches_.emplace_back(2 * config.num_pages * config.num_kv_heads * plane_bytes_);
}

void ReplayLayers::touch(int64_t pages, const pm_executor& executor) {
  if (pages <= touched_) return;
  const int64_t page_bytes = config_.num_kv_heads * plane_bytes_;  // of K or V
  pages = std::min(config_.num_pages, pages + kAhead / page_bytes);
  for (const HugeBuffer& cache : caches_) {
    if (config_.layout == PM_TILES) {
      fill_with_nan(cache.data() + 2 * touched_ * page_bytes, 2 * (pages - touched_) * page_bytes, executor);
      continue;
    }
    for (int64_t begin : {touched_, config_.num_pages + touched_}) {
      fill_with_nan(cache.data() + begin * page_bytes, (pages - touched_) * page_bytes, executor);
    }
  }
  touched_ = pages;
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
  const int64_t v_offset =
      config_.layout == PM_TILES ? 1 : config_.num_pages * config_.num_kv_heads;  // planes
  std::byte* const cache = caches_[layer].data();
  args.k_cache = cache;
  args.v_cache = cache + v_offset * plane_bytes_;
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
